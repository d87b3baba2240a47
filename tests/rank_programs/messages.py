"""What processes are seen to send in an iteration, by torch's profiler, which changes no step.

(A dispatch mode as ``CommDebugMode`` would see the same, but engines step aside for it.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import steprule
from rank_programs.training import STRATEGIES, made, numbers

# A message's kind and how many elements it is of: of a gather or a scatter, the whole's.
Seen = Mapping[tuple[str, int], int]

# What gloo's events are of: (kind, which of the event's shapes is the whole).
_OF_TENSORS = {
    "c10d::_allgather_base_": ("all-gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce-scatter", 1),
}
_OF_GLOO = {
    "gloo:all_reduce": "all-reduce",
    "gloo:broadcast": "broadcast",
    "gloo:send": "send",
    "gloo:all_gather": "all-gather of parts",
}


def seen_in(act: Callable[[], Any]) -> Seen:
    """Do something and return which messages were sent meanwhile, and how often."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        act()
    found: Counter[tuple[str, int]] = Counter()
    for event in profiler.events() or ():
        shapes = event.input_shapes or []
        if event.name in _OF_TENSORS:
            kind, whole = _OF_TENSORS[event.name]
            found[kind, prod(shapes[whole])] += 1
            # gloo carries it out by another operation, which is seen as well.
            under = "all-gather of parts" if kind == "all-gather" else "all-reduce"
            found[under, prod(shapes[1])] -= 1
        elif event.name in _OF_GLOO:
            found[_OF_GLOO[event.name], prod(shapes[0])] += 1
    return {key: count for key, count in found.items() if count}


def iteration(
    rank: int,
    strategy: str,
    layers: int,
    width: int,
    tokens: int,
    cases: list[tuple[str, dict[str, Any]]],
) -> list[tuple[Seen, Seen]]:
    """What is sent in the forward and backward pass, and in the step, by some optimizers.

    Args:
        rank: this one.
        strategy: of :data:`rank_programs.training.STRATEGIES`, or ``"ZeRO-1"``.
        layers: square ones without biases.
        width: their sides.
        tokens: examples that each rank has.
        cases: names and options of optimizers.
    """
    found = []
    for name, options in cases:
        plain = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
        for k, layer in enumerate(plain):
            layer.weight.data.copy_(numbers((width, width), k) / width**0.5)
        plan = {"0": "columns", "1": "rows"} if "TP" in strategy else {}
        model = _spread(strategy, plain, bool(plan))
        optimizer = made(name, plain.parameters(), options)
        if strategy == "ZeRO-1":
            steprule.shard_state(optimizer)
        x = torch.randn(tokens, width)

        def pass_through(model: nn.Module = model, x: torch.Tensor = x) -> None:
            model(x).square().mean().backward()

        for _ in range(2):  # DDP makes its buckets anew at the second, and says so to all
            pass_through()
            optimizer.step()
            optimizer.zero_grad()
        passes = seen_in(pass_through)
        found.append((passes, seen_in(optimizer.step)))
    return found


def _spread(strategy: str, plain: nn.Sequential, is_tensor_parallel: bool) -> nn.Module:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    from rank_programs.training import mesh_of

    if not is_tensor_parallel:
        return STRATEGIES["DDP" if strategy == "ZeRO-1" else strategy](plain)[0]
    kinds = (ColwiseParallel, RowwiseParallel)
    plan = {str(k): kinds[k % 2]() for k in range(len(plain))}
    return parallelize_module(plain, mesh_of("world"), plan)
