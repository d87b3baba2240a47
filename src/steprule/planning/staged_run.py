"""Runners of a rule with sums over several parameters, run side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines.stages import RunsInStages, Share, sent
from steprule.language.recording import Operation
from steprule.language.rule import Rule
from steprule.planning.assignment import PlannedRunner
from steprule.planning.step_record import exact_sum


def shared_by_rule(parts: Sequence[PlannedRunner]) -> list[list[PlannedRunner]]:
    """Return the runners of each rule that has sums over several parameters: its own only.

    Raises:
        RuntimeError, TypeError: as :func:`_check`.
    """
    by_rule: dict[Rule, list[PlannedRunner]] = {}
    for part in parts:
        # A group's running averages make no other rule of it: its sums are over all.
        by_rule.setdefault(part.rule.base or part.rule, []).append(part)
    found = [of_rule for of_rule in by_rule.values() if any(part.shared for part in of_rule)]
    for of_rule in found:
        _check(of_rule)
    return found


def _check(parts: Sequence[PlannedRunner]) -> None:
    """Refuse groups whose flags give a rule other sums over several parameters.

    Raises:
        RuntimeError: saying which sums.
        TypeError: an engine that cannot take such sums.
    """
    kinds = {tuple((x.name, x.over) for x in part.shared) for part in parts}
    if len(kinds) > 1:
        texts = " and ".join(
            ", ".join(f"{n} over {o}" for n, o in kind) or "none" for kind in kinds
        )
        raise RuntimeError(
            f"the groups' flags give the rule different sums over several parameters ({texts}): "
            "set them alike in all groups"
        )
    for part in parts:
        if part.shared and not isinstance(part.runner, RunsInStages):
            raise TypeError(f"engine {part.engine.name!r} takes no sums over several parameters")


def run_in_stages(runners: Sequence[RunsInStages], reductions: Sequence[Operation]) -> None:
    """Carry out one step of runners that wait for each other's sums.

    Args:
        runners: all runners of the rule.
        reductions: those over several parameters, by key.
    """
    stages = [runner.stages() for runner in runners]
    shares: list[list[Share]] = [[] for _ in reductions]
    totals: dict[int, Mapping[int, Any]] = {}
    try:
        asked = [next(one, None) for one in stages]
        _gather(shares, asked)
        for key, reduction in enumerate(reductions):
            totals[key] = _totals(reduction, shares[key])
            for i, one in enumerate(stages):
                while (waits_for := asked[i]) and all(s.key in totals for s in waits_for):
                    asked[i] = sent(one, totals)
                    _gather(shares, [asked[i]])
    finally:
        for one in stages:
            one.close()


def _gather(shares: list[list[Share]], asked: Iterable[Sequence[Share] | None]) -> None:
    for of_runner in asked:
        for share in of_runner or ():
            shares[share.key].append(share)


def _totals(reduction: Operation, shares: Sequence[Share]) -> Mapping[int, Any]:
    """Return for each group the total of what its parameters, or all, have added."""
    by_group: dict[int, list[tuple[Any, int]]] = {}
    for share in shares:
        for group, leaf in _by_group(share):
            by_group.setdefault(group, []).append(leaf)
    if reduction.over == "group":
        return {group: _total(reduction.name, leaves) for group, leaves in by_group.items()}
    total = _total(reduction.name, [leaf for leaves in by_group.values() for leaf in leaves])
    return dict.fromkeys(by_group, total)


def _by_group(share: Share) -> Iterator[tuple[int, tuple[Any, int]]]:
    """Yield each leaf's group, what it adds and its number of elements; a tensor's all at once."""
    if not isinstance(share.values, Tensor):
        for value, group, count in zip(share.values, share.groups, share.elements, strict=True):
            yield group, (value, count)
    elif share.groups:
        yield share.groups[0], (share.values, sum(share.elements))


def _total(name: str, leaves: Sequence[tuple[Any, int]]) -> Any:
    values = [value for value, _ in leaves]
    elements = max(1, sum(count for _, count in leaves)) if name == "mean_of" else 1
    if any(isinstance(x, Tensor) and (x.requires_grad or not x.is_cpu) for x in values):
        return _total_of_tensors(name, values) / elements
    numbers = [float(y) for x in values for y in (x.reshape(-1) if isinstance(x, Tensor) else [x])]
    if name == "max_of":
        return math.nan if any(map(math.isnan, numbers)) else max(numbers)
    return exact_sum(numbers) / elements


def _total_of_tensors(name: str, values: Sequence[Any]) -> Tensor:
    device = next(x.device for x in values if isinstance(x, Tensor))
    moved = [torch.as_tensor(x).to(device, non_blocking=True).reshape(-1) for x in values]
    joined = torch.cat(moved)
    return joined.amax() if name == "max_of" else joined.sum()
