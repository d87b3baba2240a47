"""Train a model whose weights, gradients and state are spread over processes (FSDP2).

    torchrun --nproc-per-node 2 examples/fsdp2.py
    torchrun --nproc-per-node 2 examples/fsdp2.py --state-format int8 --out run.safetensors
    python examples/fsdp2.py        # on one process

The optimizer is made of the sharded parameters, after fully_shard, and takes them as they are: each
process updates the rows that it has. Clipping tells the others one small vector a step. At the end
one process trains the same model by itself, and the two are compared.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import steprule
from steprule.schedules import cosine

BATCH, WIDTH = 32, 128


def make_model(seed: int, device: str) -> nn.Sequential:
    """Make a network, the same in every process."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 1)
    ).to(device)


def train(
    model: nn.Module, rank: int, size: int, args: argparse.Namespace
) -> tuple[steprule.Optimizer, list[float]]:
    """Train on every size-th example; return the optimizer, and the losses here."""
    optimizer = steprule.AdamW(
        model.parameters(),
        lr=cosine(args.lr, args.lr / 10, steps=args.steps),
        clip_grad_norm=1.0,
        state_format=args.state_format,
    )
    data = torch.Generator().manual_seed(args.seed + 1)  # every process draws the whole batch
    losses = []
    for _ in range(args.steps):
        x = torch.randn(BATCH, WIDTH, generator=data).to(args.device)
        y = (x[:, :8].sum(dim=1, keepdim=True) / 3).tanh()
        loss = (model(x[rank::size]) - y[rank::size]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return optimizer, losses


def positive(text: str) -> int:
    """Read a whole number above 0; argparse names the option that has another."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def new_file(text: str) -> Path:
    """Read the name of a file to write; that its folder is missing is said before the training."""
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return Path(text)


def main() -> None:
    """Train sharded, then on one process, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=60)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--state-format", default="param", help="int8: a quarter of the memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=new_file, help="checkpoint to write: an index, and each process's part"
    )
    args = parser.parse_args()

    if args.device == "cuda":  # one GPU a process; torchrun says which
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if args.device == "cuda" else "gloo"
    if "RANK" in os.environ:  # torchrun sets it
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    rank, size = dist.get_rank(), dist.get_world_size()
    model = make_model(args.seed, args.device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    optimizer, losses = train(model, rank, size, args)

    if args.out:  # every process calls it, with the same path
        steprule.save_training(args.out, model=model, optimizer=optimizer, step=args.steps)
    weights = [param.detach().full_tensor() for param in model.parameters()]  # asks all ranks
    if rank == 0:
        print(optimizer.explain())
        print(f"loss here: {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
        print(f"norm of the last gradient: {optimizer.last_step.grad_norm:.6f}")
        alone = make_model(args.seed, args.device)
        train(alone, 0, 1, args)
        pairs = zip(weights, alone.parameters(), strict=True)
        apart = max(float((a - b.detach()).abs().max()) for a, b in pairs)
        print(f"weights differ from one process's by at most {apart:.1e}")
        # Gradients are averaged in another order: roundings of float32, which may make another code
        # of a number whose state is stored in few bits, and a step of lr go elsewhere.
        bound = 1e-4 if args.state_format == "param" else 1e-2
        print("its result equals the single process's" if apart < bound else "IT DIFFERS")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
