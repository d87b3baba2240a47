"""A job of two ranks, the second of which is gone before the fourth step.

Run as a script, by ``torchrun`` or by itself with RANK, WORLD_SIZE and STORE (a file) set; the
argument is a folder for what rank 0 saves after each step.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import steprule


def main(folder: Path) -> None:
    """Train, and die of it."""
    limit = timedelta(seconds=20)
    if "STORE" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = f"file://{os.environ['STORE']}"
        dist.init_process_group("gloo", store, timeout=limit, rank=rank, world_size=size)
    else:
        dist.init_process_group("gloo", timeout=limit)
    mesh = init_device_mesh("cpu", (2,))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(4, 6), mesh, [Shard(0)]))
    optimizer = steprule.AdamW([param], clip_grad_norm=1.0)
    for step in range(1, 6):
        if step == 4 and dist.get_rank() == 1:
            os._exit(3)
        param.grad = distribute_tensor(torch.full((4, 6), float(step)), mesh, [Shard(0)])
        optimizer.step()
        saved = optimizer.state_dict()
        saved["state"] = {
            key: {
                name: value.full_tensor() if isinstance(value, DTensor) else value
                for name, value in entry.items()
            }
            for key, entry in saved["state"].items()
        }
        if dist.get_rank() == 0:
            torch.save({"optimizer": saved}, folder / "new.pt")
            (folder / "new.pt").replace(folder / "checkpoint.pt")
            print(f"step {step} done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
