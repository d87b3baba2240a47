"""Runners of a rule with sums over several parameters, or ranks, run side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steprule.distributed.matrices import SpreadMatrices
from steprule.engines.stages import RunsInStages, Share, Stages, sent
from steprule.language.form import Form
from steprule.language.passes import shared_levels_of
from steprule.language.recording import MATRIX_OPERATIONS, OVER_SHARDS, Operation
from steprule.language.rule import Rule
from steprule.matrix_ops.orthogonalization import iteration_dtype, orthogonalized_list
from steprule.planning.assignment import PlannedRunner
from steprule.planning.axis_sums import sums_along_axes
from steprule.planning.rank_sums import RankSums
from steprule.planning.spread_param import SpreadParam
from steprule.planning.step_record import exact_sum


class SharedSums:
    """One step after the other of a rule's runners, which wait for each other's sums.

    Where parameters are spread over ranks, what each has is first added up over these, level by
    level, in as many messages on every rank.

    Args:
        parts: all runners of the rule; none if no parameter has a gradient here.
        spread: all of its parameters that are spread over ranks.
        ranks: adds up over them; None if there are no such parameters.

    Raises:
        RuntimeError, TypeError: as :func:`_check`.
    """

    def __init__(
        self,
        parts: Sequence[PlannedRunner],
        spread: Sequence[SpreadParam] = (),
        ranks: RankSums | None = None,
    ) -> None:
        self.parts = [part for part in parts if part.shared]
        forms = [*dict.fromkeys([*(part.form for part in parts), *(one.form for one in spread)])]
        _check(parts, forms, [one.form for one in spread])
        self._spread, self._ranks = {one.number: one for one in spread}, ranks if spread else None
        self._several = {
            form.recording().shared_keys[x.result]: x
            for form in forms
            for x in form.recording().shared_reductions
            if x.over != OVER_SHARDS
        }
        #: In how many levels ranks add up: as many times they meet.
        self.levels = max((len(one.levels) for one in spread), default=0)
        of_levels = [[one.at(level) for one in spread] for level in range(self.levels)]
        # Of each level: how many rows a message has, which are maxima, whether there are matrices.
        self._rows = [max(map(len, of_level)) for of_level in of_levels]
        self._largest = [
            {row for sums in of_level for row, x in enumerate(sums) if x.name == "max_of"}
            for of_level in of_levels
        ]
        self._has_matrices = [
            any(x.name in MATRIX_OPERATIONS for sums in of_level for x in sums)
            for of_level in of_levels
        ]
        self._row_of = {part.form: _rows_of(part.form) for part in self.parts}
        # Those that a rank has whole are its own business.
        of_matrices = [
            one.shard
            for one in spread
            if one.form.is_sharded and one.form.recording().matrix_operations
        ]
        self.matrices: SpreadMatrices | None = None
        if of_matrices:
            dtype = iteration_dtype(of_matrices[0].local.device)
            self.matrices = SpreadMatrices(of_matrices, dtype)

    def notes(self) -> list[str]:
        """Say which matrices go from rank to rank, if any do."""
        return [] if self.matrices is None else [self.matrices.note()]

    def run(self) -> None:
        """Carry out one step."""
        progress = [_Progress(part, self._row_of[part.form]) for part in self.parts]
        shares: dict[int, list[Share]] = {key: [] for key in self._several}
        level = 0
        try:
            while level < self.levels or any(one.asked for one in progress):
                asked = [(one, share) for one in progress for share in one.newly_asked()]
                added = [share for _, share in asked]
                if level < self.levels:
                    added = self._over_ranks(asked, level)
                    level += 1
                for share in added:
                    if share.key in shares:
                        shares[share.key].append(share)
                has_gone_on = self._answer(progress, shares)
                is_waiting = any(one.asked for one in progress)
                if is_waiting and not has_gone_on and level >= self.levels:
                    raise AssertionError("sums over several parameters wait for each other")
        finally:
            for one in progress:
                one.stages.close()

    def _over_ranks(self, asked: Sequence[tuple[_Progress, Share]], level: int) -> list[Share]:
        """Return what was asked for, with the sums over ranks in the place of what is here."""
        assert self._ranks is not None
        rows: list[list[tuple[Sequence[int], Any]]] = [[] for _ in range(self._rows[level])]
        matrices: list[tuple[_Progress, Share]] = []
        along_axes: list[tuple[_Progress, Share]] = []
        for one, share in asked:
            reduction = one.reduction(share.key)
            if reduction.over == OVER_SHARDS and (reduction.axis or one.is_of_matrices(share.key)):
                (along_axes if reduction.axis else matrices).append((one, share))
                rows[one.row_of[share.key]].append((share.numbers, [0.0] * len(share.numbers)))
                continue
            numbers, values = _spread_in(share)
            if numbers:
                rows[one.row_of[share.key]].append((numbers, values))
        sums = self._ranks.summed(rows, self._largest[level])
        if self.matrices is not None and self._has_matrices[level]:
            self._operate(self.matrices, matrices)
        self._add_along_axes(along_axes, level)
        apart = {id(share) for _, share in (*matrices, *along_axes)}
        asked = [(one, share) for one, share in asked if id(share) not in apart]
        found: list[Share] = []
        seen: set[int] = set()
        for one, share in asked:
            row = one.row_of[share.key]
            if row >= len(sums):
                found.append(share)
                continue
            seen.update(number for number in share.numbers if number >= 0)
            if one.is_over_shards(share.key):
                one.totals[share.key] = self._finished(one.reduction(share.key), sums[row])
            else:
                found.append(_with_sums(share, sums[row]))
        return [*found, *self._elsewhere(sums, seen, level)]

    def _operate(self, matrices: SpreadMatrices, asked: Sequence[tuple[_Progress, Share]]) -> None:
        """Have each matrix worked on by one rank, and give its parts of the results to all.

        Raises:
            RuntimeError: a parameter has a gradient on some of its ranks only.
        """
        assert self._ranks is not None
        present = self._ranks.present().tolist()
        for one in matrices.matrices:
            if present[one.number] not in (0.0, float(len(one.parts))):
                raise RuntimeError(
                    f"{self._spread[one.number].label} has a gradient on "
                    f"{int(present[one.number])} of {len(one.parts)} ranks: what is done with a "
                    "matrix needs all of it. Nothing was changed"
                )
        told = {
            number: of_leaf
            for _, share in asked
            for number, of_leaf in zip(share.numbers, share.told, strict=True)
        }
        values = {
            number: value
            for _, share in asked
            for number, value in zip(share.numbers, share.values, strict=True)
        }

        def operate(whole: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
            made: dict[int, Tensor] = {}
            for alike in dict.fromkeys(told[number] for number in whole):
                numbers = [number for number in whole if told[number] == alike]
                results = orthogonalized_list([whole[n] for n in numbers], *alike)
                made.update(zip(numbers, results, strict=True))
            return made

        with torch.no_grad():
            results = matrices.operated(values, operate)
        for who, share in asked:
            who.totals[share.key] = results

    def _add_along_axes(self, asked: Sequence[tuple[_Progress, Share]], level: int) -> None:
        """Add up over ranks the sums of rows, or columns, of those that are cut there."""
        here = {
            (one.row_of[share.key], number): value
            for one, share in asked
            for number, value in zip(share.numbers, share.values, strict=True)
        }
        sums = sums_along_axes(self._spread.values(), level, here)
        for one, share in asked:
            row = one.row_of[share.key]
            found = {number: sums[row, number] for number in share.numbers}
            one.totals[share.key] = {**one.totals.get(share.key, {}), **found}

    def _finished(self, reduction: Operation, sums: Sequence[float] | Tensor) -> Any:
        """Return a row's sums as the results of a reduction over each parameter's elements."""
        if reduction.name != "mean_of":
            return sums
        elements = [1] * (1 + max(self._spread))
        for number, one in self._spread.items():
            elements[number] = max(1, one.elements)
        if isinstance(sums, Tensor):
            counts = torch.tensor(elements, dtype=sums.dtype, device=sums.device)
            return sums[: len(elements)] / counts
        return [x / count for x, count in zip(sums, elements, strict=False)]

    def _elsewhere(
        self,
        sums: Sequence[Sequence[float] | Tensor],
        seen: set[int],
        level: int,
    ) -> Iterator[Share]:
        """Yield what parameters add, to sums over several, that have a gradient on other ranks."""
        assert self._ranks is not None
        if not self._several:
            return
        present = self._ranks.present().tolist()
        for number, one in self._spread.items():
            if number in seen or not present[number]:
                continue
            recording = one.form.recording()
            for row, reduction in enumerate(one.at(level)):
                if reduction.over != OVER_SHARDS:
                    key = recording.shared_keys[reduction.result]
                    value = sums[row][number]
                    yield Share(key, [value], [one.group], [one.elements], [number])

    def _answer(self, progress: Sequence[_Progress], shares: Mapping[int, Sequence[Share]]) -> bool:
        """Send what is known by now to those who wait for no more; tell whether there were any."""
        totals = {
            key: _totals(reduction, shares[key])
            for key, reduction in self._several.items()
            if not any(one.will_ask(key) for one in progress)
        }
        has_gone_on = False
        for one in progress:
            known = {**totals, **one.totals}
            if one.asked and all(share.key in known for share in one.asked):
                one.go_on(known)
                has_gone_on = True
        return has_gone_on


class _Progress:
    """How far a runner's update is."""

    def __init__(self, part: PlannedRunner, row_of: Mapping[int, int]) -> None:
        recording = part.form.recording()
        self._reductions = {recording.shared_keys[x.result]: x for x in recording.shared_reductions}
        self.row_of = row_of
        #: Of sums over the shards of one parameter, those that are known.
        self.totals: dict[int, Any] = {}
        self._left = set(self._reductions)
        self.stages: Stages = cast("RunsInStages", part.runner).stages()
        self.asked: Sequence[Share] = next(self.stages, ())
        self._is_new = True

    def newly_asked(self) -> Sequence[Share]:
        """Return what it asks for, once."""
        if not self._is_new:
            return ()
        self._is_new = False
        self._left -= {share.key for share in self.asked}
        return self.asked

    def reduction(self, key: int) -> Operation:
        return self._reductions[key]

    def is_over_shards(self, key: int) -> bool:
        return self._reductions[key].over == OVER_SHARDS

    def is_of_matrices(self, key: int) -> bool:
        return self._reductions[key].name in MATRIX_OPERATIONS

    def will_ask(self, key: int) -> bool:
        """Tell whether it has still to say what its leaves add to a sum."""
        return key in self._left and bool(self.asked)

    def go_on(self, totals: Mapping[int, Any]) -> None:
        self.asked = sent(self.stages, totals) or ()
        self._is_new = True


def _rows_of(form: Form) -> dict[int, int]:
    """Return which row of its level's message each sum of a form has, by its key."""
    recording = form.recording()
    return {
        recording.shared_keys[x.result]: row
        for level in shared_levels_of(recording)
        for row, x in enumerate(level)
    }


def shared_by_rule(
    parts: Sequence[PlannedRunner],
    spread: Mapping[Rule, Sequence[SpreadParam]],
    ranks: RankSums | None,
) -> list[SharedSums]:
    """Return the runners of each rule that has sums over several parameters, or ranks.

    Raises:
        RuntimeError, TypeError: as :func:`_check`.
    """
    by_rule: dict[Rule, list[PlannedRunner]] = {rule: [] for rule in spread}
    for part in parts:
        # Running averages and caution make no other rule of it: its sums are over all groups.
        by_rule.setdefault(part.rule.root, []).append(part)
    return [
        SharedSums(of_rule, spread.get(rule, ()), ranks)
        for rule, of_rule in by_rule.items()
        if spread.get(rule) or any(part.shared for part in of_rule)
    ]


def _check(parts: Sequence[PlannedRunner], forms: Sequence[Form], of_ranks: Sequence[Form]) -> None:
    """Refuse groups whose flags give a rule other sums over several parameters.

    Raises:
        RuntimeError: saying which sums.
        TypeError: an engine that cannot take such sums.
    """
    kinds = {_several_of(form) for form in forms}
    if len(kinds) > 1:
        texts = " and ".join(
            ", ".join(f"{n} over {o}" for n, o in kind) or "none" for kind in kinds
        )
        raise RuntimeError(
            f"the groups' flags give the rule different sums over several parameters ({texts}): "
            "set them alike in all groups"
        )
    if len({*map(_levels_of_several, of_ranks)}) > 1:
        raise RuntimeError(
            "the groups' flags give the rule sums over several parameters that can't be taken at "
            "once, as sharded parameters need it: set them (clip_grad_norm_over) alike in all "
            "groups"
        )
    for part in parts:
        if part.shared and not isinstance(part.runner, RunsInStages):
            raise TypeError(f"engine {part.engine.name!r} takes no sums over several parameters")


def _several_of(form: Form) -> tuple[tuple[str, str], ...]:
    shared = form.recording().shared_reductions
    return tuple((x.name, x.over) for x in shared if x.over != OVER_SHARDS)


def _levels_of_several(form: Form) -> tuple[tuple[int, ...], ...]:
    """Return at which level, and as which of its sums, each sum over several parameters comes."""
    return tuple(
        (level, row)
        for level, together in enumerate(shared_levels_of(form.recording()))
        for row, x in enumerate(together)
        if x.over != OVER_SHARDS
    )


def _spread_in(share: Share) -> tuple[Sequence[int], Any]:
    """Return the numbers and values of those leaves that are spread over ranks."""
    if all(number >= 0 for number in share.numbers):
        if isinstance(share.values, Tensor) and len(share.values) != len(share.numbers):
            raise AssertionError("a runner's leaves are all sharded, or none is")
        return share.numbers, _as_column(share.values)
    places = [i for i, number in enumerate(share.numbers) if number >= 0]
    return [share.numbers[i] for i in places], _as_column([share.values[i] for i in places])


def _as_column(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values
    if any(isinstance(x, Tensor) for x in values):
        return torch.stack([torch.as_tensor(x, dtype=torch.float64).reshape(()) for x in values])
    return values


def _with_sums(share: Share, sums: Sequence[float] | Tensor) -> Share:
    """Return a share with the sums over ranks of those leaves that are spread."""
    values = [
        value if number < 0 else sums[number]
        for value, number in zip(share.values, share.numbers, strict=True)
    ]
    return Share(share.key, values, share.groups, share.elements, share.numbers)


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
    if not numbers:
        return 0.0
    if name == "max_of":
        return math.nan if any(map(math.isnan, numbers)) else max(numbers)
    return exact_sum(numbers) / elements


def _total_of_tensors(name: str, values: Sequence[Any]) -> Tensor:
    device = next(x.device for x in values if isinstance(x, Tensor))
    moved = [torch.as_tensor(x).to(device, non_blocking=True).reshape(-1) for x in values]
    joined = torch.cat(moved)
    return joined.amax() if name == "max_of" else joined.sum()
