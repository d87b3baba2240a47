"""Training with state in 8 bits and weights in 16, beside float32: does the loss tell a difference?

    python benchmarks/format_quality.py [--seeds 5] [--steps 200] [--optimizers adam] [--task lm]

Two tasks. *digits*: scikit-learn's 8x8 digits, a 64-128-10 network, batches of 64. *lm*: a
transformer that predicts the next byte of this project's own documentation (2 layers of width 128,
context 64, batches of 16). What is shown is the loss at the end, on what was held out: its mean
over seeds, and its smallest and largest value. Weights of 16 bits are used as they are stored,
cast to float32 in the forward pass: what differs is their storage alone.

A choice is marked worse where its mean is above the largest loss of float32's seeds. All state is
in the format, small tensors too.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import steprule

OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    # name: class, options on digits, options on the language model
    "adam": ("Adam", {"lr": 3e-3}, {"lr": 2e-3}),
    "adamw": ("AdamW", {"lr": 3e-3}, {"lr": 2e-3}),
    "sgd": ("SGD", {"lr": 0.05, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.9}),
    "rmsprop": ("RMSprop", {"lr": 1e-3}, {"lr": 1e-3}),
    "adagrad": ("Adagrad", {"lr": 0.03}, {"lr": 0.02}),
    "adadelta": ("Adadelta", {"lr": 1.0}, {"lr": 1.0}),
    "nadam": ("NAdam", {"lr": 3e-3}, {"lr": 2e-3}),
}
CHOICES: Mapping[str, tuple[torch.dtype, Mapping[str, Any]]] = {
    "float32": (torch.float32, {}),
    "int8": (torch.float32, {"state_format": "int8"}),
    "int4": (torch.float32, {"state_format": "int4"}),
    "bf16 nearest": (torch.bfloat16, {}),
    "bf16 split": (torch.bfloat16, {"param_rounding": "split", "state_format": "float32"}),
    "bf16 split, int8": (torch.bfloat16, {"param_rounding": "split", "state_format": "int8"}),
}

Batches = Iterator[tuple[Tensor, Tensor]]
Task = Callable[[], tuple[nn.Module, Callable[[torch.Generator], tuple[Tensor, Tensor]], Any]]


def digits() -> tuple[nn.Module, Any, Any]:
    """Return a network, what makes batches, and what is held out."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.data, dtype=torch.float32) / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, held = order[:1437], order[1437:]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = train[torch.randint(len(train), (64,), generator=generator)]
        return x[chosen], y[chosen]

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, batch, (x[held], y[held])


class Transformer(nn.Module):
    """A small decoder over bytes."""

    def __init__(self, width: int = 128, layers: int = 2, context: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.randn(context, width) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each next byte."""
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        hidden = self.tokens(x) + self.places[: x.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits.flatten(0, 1)


def language_model() -> tuple[nn.Module, Any, Any]:
    """Return a network, what makes batches, and what is held out."""
    root = Path(__file__).parents[1]
    text = b"".join(path.read_bytes() for path in sorted((root / "docs").glob("*.md")))
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    cut = len(data) * 9 // 10

    def windows(starts: Tensor) -> tuple[Tensor, Tensor]:
        rows = torch.stack([data[i : i + 65] for i in starts.tolist()])
        return rows[:, :-1], rows[:, 1:].flatten()

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return windows(torch.randint(cut - 65, (16,), generator=generator))

    return Transformer(), batch, windows(torch.arange(cut, len(data) - 65, 101))


TASKS: Mapping[str, Callable[[], tuple[nn.Module, Any, Any]]] = {
    "digits": digits,
    "lm": language_model,
}


def final_loss(
    task: str, name: str, choice: str, seed: int, steps: int
) -> tuple[float, steprule.Optimizer]:
    """Train once; return the loss on what was held out, and the optimizer."""
    torch.manual_seed(seed)
    model, batch, (held_x, held_y) = TASKS[task]()
    dtype, storing = CHOICES[choice]
    model.to(dtype)
    cls, on_digits, on_text = OPTIMIZERS[name]
    options = {**(on_digits if task == "digits" else on_text), **storing}
    optimizer = getattr(steprule, cls)(model.parameters(), state_format_min_size=0, **options)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        wide = {key: value.float() for key, value in model.named_parameters()}
        return cross_entropy(functional_call(model, wide, (x,)), y)

    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(*batch(generator)).backward()
        optimizer.step()
    with torch.no_grad():
        return loss_of(held_x, held_y).item(), optimizer


def main() -> None:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="default: 400 digits, 200 lm")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS))
    parser.add_argument("--task", default="digits,lm")
    asked = parser.parse_args()
    for task in asked.task.split(","):
        steps = asked.steps or {"digits": 400, "lm": 200}[task]
        print(
            f"\n{task}, {steps} steps, {asked.seeds} seeds: held-out loss, mean (least to most)\n"
        )
        print("| |", " | ".join(CHOICES), "|")
        print("|---" * (1 + len(CHOICES)) + "|")
        for name in asked.optimizers.split(","):
            cells, plain = [], []
            for choice in CHOICES:
                losses = [
                    final_loss(task, name, choice, seed, steps)[0] for seed in range(asked.seeds)
                ]
                plain = plain or losses
                mean = statistics.mean(losses)
                is_within = not math.isnan(mean) and mean <= max(plain)
                mark = "" if is_within else " **worse**"
                cells.append(f"{mean:.3f} ({min(losses):.3f} to {max(losses):.3f}){mark}")
            print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
