"""Train on several processes, each on its own examples, and get what one process gets.

    torchrun --nproc-per-node 2 examples/distributed.py

DistributedDataParallel gives every process the average of all gradients before step(); an optimizer
needs to know nothing of it. Run by itself, the script trains on one process.
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import steprule
from steprule.schedules import cosine

STEPS, BATCH = 20, 32


def make_model() -> nn.Module:
    """Make a network, the same in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))


def train(model: nn.Module, rank: int, size: int) -> tuple[float, float | None]:
    """Train on every size-th example; return the last loss and the last gradient's norm."""
    optimizer = steprule.AdamW(
        model.parameters(),
        lr=cosine(1e-2, 1e-3, steps=STEPS),
        clip_grad_norm=1.0,
        on_nonfinite="skip",
    )
    data = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(BATCH, 16, generator=data)
        y = x.sum(dim=1, keepdim=True).sin()
        loss = (model(x[rank::size]) - y[rank::size]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), optimizer.last_step.grad_norm


def main() -> None:
    """Train on all processes, then on one, and compare."""
    if "RANK" in os.environ:  # torchrun sets it
        dist.init_process_group("gloo")
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    rank, size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(make_model())
    loss, norm = train(model, rank, size)
    if rank == 0:
        print(f"{size} processes: loss here {loss:.4f}, norm of the last gradient {norm:.6f}")
        alone = make_model()
        train(alone, 0, 1)
        pairs = zip(model.parameters(), alone.parameters(), strict=True)
        apart = max(float((a - b).detach().abs().max()) for a, b in pairs)
        print(f"weights differ from one process's by at most {apart:.1e}")
        # Gradients are averaged in another order: roundings of float32.
        print("its result equals the single process's" if apart < 1e-4 else "IT DIFFERS")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
