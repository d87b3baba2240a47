"""8-bit Adam beside bitsandbytes' and torchao's: a step's time, and the error of what is stored.

    pip install bitsandbytes torchao    # into an environment of their own; neither is needed here
    python benchmarks/format_peers.py [--elements 20000000]

Times are the best quartile of steps in turn, on the same parameters. Errors are of the same states,
as Adam in float32 leaves them after 200 steps of the language model of format_quality.py: each is
encoded once, and what is read again compared. *Followed*: each optimizer is given the same 200
gradients, and its exp_avg_sq compared with the one of float32. Who is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from format_quality import final_loss
from torch import Tensor

import steprule
from steprule.formats.mini_floats import MiniFloat
from steprule.formats.random_bits import random_words
from steprule.state.storing import column_shape

# Takes a state (and whether it may be negative); gives what is read after storing it.
Stored = Callable[[Tensor, bool], Tensor]


def module(name: str) -> Any:
    """Return a module, or None if it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def makers() -> dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]]:
    """Return who steps, by name."""
    found: dict[str, Any] = {
        "steprule int8": lambda p: steprule.Adam(p, lr=1e-3, state_format="int8"),
        "torch fused, float32": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    }
    if (bnb := module("bitsandbytes")) is not None:
        found["bitsandbytes Adam8bit"] = lambda p: bnb.optim.Adam8bit(p, lr=1e-3)
    if (ao := module("torchao.optim")) is not None:
        found["torchao Adam8bit"] = lambda p: ao.Adam8bit(p, lr=1e-3)
    return found


def print_times(elements: int, rounds: int) -> None:
    """Print a step's time for each."""
    optimizers = {}
    for name, make in makers().items():
        generator = torch.Generator().manual_seed(0)
        params = [
            torch.randn(elements // 10, generator=generator).requires_grad_() for _ in range(10)
        ]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator) * 1e-2
        optimizers[name] = make(params)
        for _ in range(2):
            optimizers[name].step()  # torchao compiles
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - start)
    found = {name: sorted(each)[len(each) // 4] for name, each in times.items()}
    print(f"a step over {elements:,} floats in 10 tensors, {torch.get_num_threads()} threads\n")
    print("| | ms | over steprule |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {seconds * 1e3:.1f} | {seconds / found['steprule int8']:.2f} |")


def ours(bits: int, *, is_random: bool) -> Stored:
    """Return our format."""

    def stored(state: Tensor, is_signed: bool) -> Tensor:
        storage = MiniFloat(bits, 3 if bits == 8 else 0, is_signed)
        columns = [
            torch.zeros(column_shape(column, state.shape), dtype=column.dtype)
            for column in storage.columns
        ]
        words = random_words(1, state.shape, state.device) if is_random else None
        storage.write(columns, state, words)
        return storage.read(columns, torch.float32, state.shape)

    return stored


def formats() -> Mapping[str, Stored]:
    """Return who stores, by name."""
    found: dict[str, Stored] = {
        "steprule int8, at random": ours(8, is_random=True),
        "steprule int8, to nearest": ours(8, is_random=False),
        "steprule int4, at random": ours(4, is_random=True),
    }
    if (bnb := module("bitsandbytes.functional")) is not None:

        def by_bnb(state: Tensor, is_signed: bool) -> Tensor:
            code = bnb.create_dynamic_map(signed=is_signed)
            quantized, kept = bnb.quantize_blockwise(state, code=code, blocksize=256)
            read: Tensor = bnb.dequantize_blockwise(quantized, kept)
            return read

        found["bitsandbytes, dynamic map"] = by_bnb
    if (ao := module("torchao.optim.quant_utils")) is not None:

        def by_ao(state: Tensor, is_signed: bool) -> Tensor:
            code = torch.tensor(ao.create_dynamic_map(signed=is_signed))
            scaled, scale = ao.scale_tensor(state.reshape(-1, 256), 256)
            codes = ao.quantize_8bit_with_qmap(scaled, code)
            read: Tensor = (code[codes.int()].view(-1, 256) * scale.view(-1, 1)).view(state.shape)
            return read

        found["torchao, dynamic map"] = by_ao
    return found


def print_errors(steps: int) -> None:
    """Print the errors of each format."""
    _, optimizer = final_loss("lm", "adam", "float32", 0, steps)
    matrices = [entry for p, entry in optimizer.state.items() if p.numel() % 256 == 0]
    print(f"\nrelative errors of Adam's states after {steps} steps of a language model\n")
    print(
        "| | exp_avg: median | 99 % | of the root mean square | sqrt(exp_avg_sq): median | 99 % |"
    )
    print("|---|---|---|---|---|---|")
    for name, stored in formats().items():
        cells = []
        for key, is_signed in (("exp_avg", True), ("exp_avg_sq", False)):
            exact = [entry[key].contiguous() for entry in matrices]
            read = [stored(x, is_signed) for x in exact]
            if not is_signed:
                exact, read = [x.sqrt() for x in exact], [x.sqrt() for x in read]
            one, other = (
                torch.cat([x.flatten() for x in exact]),
                torch.cat([x.flatten() for x in read]),
            )
            there = one != 0
            relative = ((other - one).abs() / one.abs())[there]
            cells += [
                f"{relative.median():.4f}",
                f"{relative.sort()[0][int(0.99 * len(relative))]:.3f}",
            ]
            if is_signed:
                cells.append(f"{(other - one).norm() / one.norm():.4f}")
        print(f"| {name} | {' | '.join(cells)} |")


def print_followed(steps: int) -> None:
    """Print how far each optimizer's exp_avg_sq is from its twin in float32 after some steps."""
    size = 256 * 256
    scale = torch.logspace(-2, 0, size).view(256, 256)
    print(f"\nsqrt(exp_avg_sq) over its float32 twin after {steps} steps, beta2 = 0.999\n")
    print("| | mean | 1 % | 99 % | between 0.7 and 1.4 |\n|---|---|---|---|---|")
    for name, make in makers().items():
        found = []
        for making in (make, lambda p: torch.optim.Adam(p, lr=1e-3)):
            param = torch.zeros(256, 256).requires_grad_()
            optimizer = making([param])
            generator = torch.Generator().manual_seed(0)
            for _ in range(steps):
                param.grad = scale * torch.randn(param.shape, generator=generator)
                optimizer.step()
            found.append(second_moment(optimizer, param).flatten().sqrt())
        ratio = (found[0] / found[1]).sort()[0]
        within = ((ratio > 0.7) & (ratio < 1.4)).double().mean()
        ends = [f"{ratio[int(part * len(ratio))]:.2f}" for part in (0.01, 0.99)]
        print(f"| {name} | {ratio.mean():.3f} | {' | '.join(ends)} | {100 * within:.1f} % |")


def second_moment(optimizer: Any, param: Tensor) -> Tensor:
    """Return an optimizer's exp_avg_sq as numbers."""
    if isinstance(optimizer, steprule.Optimizer):
        found: Tensor = optimizer.torch_state_dict()["state"][0]["exp_avg_sq"]
        return found
    entry = optimizer.state[param]
    if "state2" in entry:  # bitsandbytes
        numbers: Tensor = entry["qmap2"][entry["state2"].long()].view(-1, 256)
        return numbers * entry["absmax2"].view(-1, 1)
    kept = entry["exp_avg_sq"]
    dequantized: Tensor = kept.dequantize() if hasattr(kept, "codes") else kept
    return dequantized


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    print_errors(asked.steps)
    print_followed(200)
    print()
    print_times(asked.elements, asked.rounds)


if __name__ == "__main__":
    main()
