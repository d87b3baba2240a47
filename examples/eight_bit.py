"""Train in half the memory: bfloat16 weights, optimizer state in 8 bits, the losses of float32.

    python examples/eight_bit.py
    python examples/eight_bit.py --width 1024 --state-format int4

Two runs on the same batches from the same weights. The one has everything in float32. In the other
a weight is a bfloat16 number, its 16 missing bits lie beside it ("split"), and AdamW's two averages
take a byte each. A third run shows what bfloat16 weights do without the missing bits.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import steprule as optim
from steprule.schedules import cosine


def make_model(width: int, dtype: torch.dtype, args: argparse.Namespace) -> nn.Module:
    """Make the network, with the same weights each time, as well as the dtype can hold them."""
    torch.manual_seed(args.seed)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return model.to(args.device, dtype)


def memory(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, int]:
    """Return the bytes of weights, gradients and state. (`steprule memory` says it beforehand.)"""
    weights = list(model.parameters())
    return {
        "weights": sum(w.numel() * w.element_size() for w in weights),
        "gradients": sum(w.grad.numel() * w.grad.element_size() for w in weights),
        "state": sum(
            value.numel() * value.element_size()
            for kept in optimizer.state.values()
            for value in kept.values()
            if isinstance(value, Tensor)
        ),
    }


def train(
    dtype: torch.dtype, formats: dict[str, str], args: argparse.Namespace
) -> tuple[list[float], float, dict[str, int]]:
    """Train; return the loss of each epoch, the accuracy on what was left out, and the bytes."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=dtype, device=args.device) / 8 - 1
    labels = torch.tensor(digits.target, device=args.device)
    cut = len(labels) * 3 // 4
    steps = args.epochs * -(-cut // 64)
    model = make_model(args.width, dtype, args)
    optimizer = optim.AdamW(
        model.named_parameters(),  # by their names the random bits of rounding are told apart
        lr=cosine(args.lr, 0, steps=steps),
        weight_decay=0.05,
        **formats,
    )
    losses = []
    for epoch in range(args.epochs):
        total = 0.0
        order = torch.randperm(cut, generator=torch.Generator().manual_seed(epoch))
        for rows in order.to(args.device).split(64):
            optimizer.zero_grad()
            # The loss is computed in float32: a logarithm of a sum needs more than 8 bits.
            loss = functional.cross_entropy(model(images[rows]).float(), labels[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / cut)
    with torch.no_grad():
        right = model(images[cut:]).argmax(dim=1) == labels[cut:]
    return losses, right.float().mean().item(), memory(model, optimizer)


def row(label: object, cells: Iterable[str]) -> str:
    """Return a line of the table."""
    return f"{label!s:<10}" + "".join(f"{cell:>16}" for cell in cells)


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
    """Train in three ways and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--width", type=positive, default=256)
    parser.add_argument("--state-format", default="int8", choices=["bfloat16", "int8", "int4"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="write the table to this file, too")
    args = parser.parse_args()

    short = {"state_format": args.state_format, "param_rounding": "split"}
    runs = {
        "float32": train(torch.float32, {}, args),
        f"split, {args.state_format}": train(torch.bfloat16, short, args),
        "bfloat16 alone": train(torch.bfloat16, {}, args),
    }
    sizes = [each for *_, each in runs.values()]
    totals = [sum(size.values()) for size in sizes]
    lines = [row("epoch", runs)]
    lines += [
        row(epoch + 1, (f"{losses[epoch]:.4f}" for losses, *_ in runs.values()))
        for epoch in range(args.epochs)
    ]
    lines.append(row("test", (f"{accuracy:.2%}" for _, accuracy, _ in runs.values())))
    lines += [row(what, (f"{size[what]:,}" for size in sizes)) for what in sizes[0]]
    lines.append(row("bytes", (f"{total:,}" for total in totals)))
    table = "\n".join(lines)
    print(table)
    if args.out:
        args.out.write_text(table + "\n", encoding="utf-8")
    (exact, *_), (few, *_), _ = runs.values()
    print(f"final loss: {exact[-1]:.4f} in float32, {few[-1]:.4f} in few bits")
    print(f"bytes: {totals[1] / totals[0]:.1%} of float32's")


if __name__ == "__main__":
    main()
