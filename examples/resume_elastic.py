"""Save on two processes, go on with one, or with two: through torch.distributed.checkpoint.

    torchrun --nproc-per-node 2 examples/resume_elastic.py run
    torchrun --nproc-per-node 2 examples/resume_elastic.py run
    torchrun --nproc-per-node 1 examples/resume_elastic.py run

The first time the run is saved half-way, and trained to its end without a break. Every later time
it is resumed from the middle, on however many processes there are, and its end compared with that.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import steprule

STEPS, BATCH, WIDTH = 20, 32, 32


def make_model() -> nn.Module:
    """Make a network, the same in every process, and spread it over all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def train(model: nn.Module, optimizer: steprule.Optimizer, steps: range) -> None:
    """Take these steps; the examples of each are all processes' together."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in steps:
        data = torch.Generator().manual_seed(step)
        x = torch.randn(BATCH, WIDTH, generator=data)
        y = x[:, :4].sum(dim=1, keepdim=True).sin()
        optimizer.zero_grad()
        (model(x[rank::size]) - y[rank::size]).square().mean().backward()
        optimizer.step()


def save(folder: Path, model: nn.Module, optimizer: steprule.Optimizer) -> None:
    """Write the run; every process its own part."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(folder: Path, model: nn.Module, optimizer: steprule.Optimizer) -> None:
    """Read it; every process what it has now."""
    weights, state = get_state_dict(model, optimizer)
    saved = {"model": weights, "optimizer": state}
    dcp.load(saved, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"]
    )


def all_weights(model: nn.Module) -> list[Tensor]:
    """Return the whole weights, on every process."""
    return [param.detach().full_tensor() for param in model.parameters()]


def main() -> None:
    """Run it, or resume it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the run is saved")
    folder = parser.parse_args().folder

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = make_model()
    optimizer = steprule.AdamW(model.parameters(), lr=1e-2, clip_grad_norm=1.0)
    end = folder / "end.pt"
    is_new = not end.exists()
    dist.barrier()  # before anybody writes it
    if is_new:
        train(model, optimizer, range(STEPS // 2))
        save(folder / "half-way", model, optimizer)
        train(model, optimizer, range(STEPS // 2, STEPS))
        weights = all_weights(model)
        if rank == 0:
            torch.save(weights, end)
            print(f"{size} processes: saved after {STEPS // 2} steps, and trained to the end")
    else:
        load(folder / "half-way", model, optimizer)
        train(model, optimizer, range(STEPS // 2, STEPS))
        weights = all_weights(model)
        if rank == 0:
            pairs = zip(weights, torch.load(end, weights_only=True), strict=True)
            apart = max(float((a - b).abs().max()) for a, b in pairs)
            print(f"resumed on {size}: weights differ by at most {apart:.1e}")
            # On as many processes not a bit; on others gradients are averaged in another order.
            print("continuing equals the uninterrupted run" if apart < 1e-4 else "IT DIFFERS")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
