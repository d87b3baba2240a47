"""Train a model whose weights, gradients and state are spread over processes (FSDP2).

    torchrun --nproc-per-node 2 examples/fsdp2.py [--state-format int8]

The optimizer is made of the sharded parameters, after fully_shard, and takes them as they are: each
process updates the rows that it has. Clipping tells the others one small vector a step.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import steprule
from steprule.schedules import cosine

STEPS, BATCH, WIDTH = 20, 32, 128


def make_model() -> nn.Sequential:
    """Make a network, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 1)
    )


def train(model: nn.Module, rank: int, size: int, state_format: str) -> steprule.Optimizer:
    """Train on every size-th example."""
    optimizer = steprule.AdamW(
        model.parameters(),
        lr=cosine(1e-3, 1e-4, steps=STEPS),
        clip_grad_norm=1.0,
        state_format=state_format,
    )
    data = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, WIDTH, generator=data)
        y = x[:, :8].sum(dim=1, keepdim=True).sin()
        loss = (model(x[rank::size]) - y[rank::size]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return optimizer


def main() -> None:
    """Train sharded, then on one process, and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--state-format", default="param", help="int8: a quarter of the memory")
    state_format = parser.parse_args().state_format

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = make_model()
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    optimizer = train(model, rank, size, state_format)

    weights = [param.detach().full_tensor() for param in model.parameters()]  # asks all ranks
    if rank == 0:
        print(optimizer.explain())
        print(f"norm of the last gradient: {optimizer.last_step.grad_norm:.6f}")
        alone = make_model()
        train(alone, 0, 1, state_format)
        pairs = zip(weights, alone.parameters(), strict=True)
        apart = max(float((a - b.detach()).abs().max()) for a, b in pairs)
        print(f"weights differ from one process's by at most {apart:.1e}")
        # Gradients are averaged in another order: roundings of float32, which may make another code
        # of a number whose state is stored in few bits, and a step of lr go elsewhere.
        bound = 1e-4 if state_format == "param" else 1e-2
        print("its result equals the single process's" if apart < bound else "IT DIFFERS")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
