"""Guards at work: the gradients' norm before a step, and what follows from it.

Runners leave the sum of squares of each gradient; these are added up exactly (so that neither the
order of parameters nor the number of threads changes a bit). From the sums follow the factor by
which a group's gradients are multiplied in the update itself, and whether there is an update:
gradients are read once more, and never written.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steprule.engines.square_sums import SquareSums, SumsSquares, is_finite, square_sums_of
from steprule.language.guards import clip_factor
from steprule.planning.assignment import PlannedRunner, tell_numbers
from steprule.planning.lagged_norms import LaggedNorms
from steprule.planning.rank_sums import RankSums
from steprule.planning.scaling import CalledOffOnDevice
from steprule.planning.settings import Place, Settings
from steprule.planning.spread import Spread, is_guarded
from steprule.planning.step_record import StepRecord, exact_sum
from steprule.state.labels import label_of

# So many parameters are named in an error.
_NAMED = 5
# What an error counts among ranks that found something: more than there are ranks.
_ERROR = 2.0**32


class GradientGuards:
    """Looks at all gradients that were collected, before anything is updated.

    Args:
        settings: of each group; the plan's own list.
        parts: the plan's runners.
        record: what is left for who asks.
        origin: where the only parameter stands in the optimizer, if there is no other.
        norms: those of the step before, by which it is clipped then.
        spread: what parameters are spread over ranks.

    Attributes:
        factors: what each group's gradients are multiplied by.
        grad_scale: what gradients are divided by, in the update as well.
        found_inf: what calls the step off on the device; None if nothing does.
        is_on: whether any group is clipped by a norm over several parameters, or must be finite.
    """

    def __init__(
        self,
        settings: Sequence[Settings],
        parts: Sequence[PlannedRunner],
        record: StepRecord,
        origin: Place | None = None,
        norms: LaggedNorms | None = None,
        spread: Spread | None = None,
    ) -> None:
        self._settings, self._parts, self._record = settings, parts, record
        self._ranks = None if spread is None else spread.ranks
        # Of each leaf which it is among parameters that are spread over ranks, -1 for none.
        self._numbers = [
            [-1 if one is None or not one.groups else one.number for one in part.shards]
            for part in parts
        ]
        self._elsewhere = [] if spread is None else _groups_of(settings, spread)
        self._origin, self._norms = origin, norms
        runners = [part.runner for part in parts]
        self._summing = [one if isinstance(one, SumsSquares) else None for one in runners]
        self.factors: list[Any] = [1.0] * len(settings)
        self.grad_scale: Any = 1.0
        self.found_inf: Tensor | None = None
        self._runners = runners
        self._masks: dict[tuple[int, tuple[int, ...], torch.device], Tensor] = {}
        self.is_on = False
        self.settings_changed()

    def settings_changed(self) -> None:
        """Look anew at what the groups ask for."""
        self.is_on = any(map(is_guarded, self._settings))
        if not self.is_on:
            self._record.clear()

    def sum_squares(self) -> None:
        """Have the runners that can sum the squares of their gradients."""
        for summing in self._summing:
            if summing is not None:
                summing.sum_squares()

    def admits(self) -> bool:
        """Tell whether the step is to be taken, and tell the runners by what to clip.

        Raises:
            RuntimeError: a gradient is not finite where that is an error, the parameter named.
        """
        sums: list[tuple[SquareSums, Sequence[int]]] = [
            (self._unscaled(_sums_of(part, summing)), part.leaf_groups)
            for part, summing in zip(self._parts, self._summing, strict=True)
        ]
        settings = self._settings
        watched = [i for i, s in enumerate(settings) if s.on_nonfinite != "propagate"]
        if self._ranks is not None and self._norms is None:
            here = [] if self._is_left_to_device(watched) else self._not_finite(watched, sums)
            is_error = self._is_error(here)
            sums = self._over_ranks(sums, self._ranks, bool(here) + _ERROR * is_error)
        else:
            here = []
        if self._norms is not None and self._origin is not None:
            self._clip_by_known(self._norms, self._origin.group, sums)
            return True
        total: Any = None
        over_all = [i for i, s in enumerate(settings) if s.clip_over == "all"]
        if over_all:
            total = self._total(sums, over_all)
        is_known = total is not None and set(watched) <= set(over_all)
        of_watched = total if is_known or not watched else self._total(sums, watched)
        called_off: Tensor | None = None
        if watched and self._is_left_to_device(watched):
            called_off = self._call_off(of_watched)
        elif watched and not self._are_finite(watched, of_watched, sums, here):
            self._record.note_skipped(sums, len(settings))
            return False
        factors: list[Any] = [None] * len(settings)
        for i, group in enumerate(settings):
            if group.clip_over is not None:
                squares = total if group.clip_over == "all" else self._total(sums, [i])
                factors[i] = _factor(group.numbers["clip_grad_norm"], squares)
                self._put(i, factors[i])
        self._record.note(sums, factors, called_off)
        return True

    def _over_ranks(
        self,
        sums: Sequence[tuple[SquareSums, Sequence[int]]],
        ranks: RankSums,
        number: float,
    ) -> list[tuple[SquareSums, Sequence[int]]]:
        """Return the sums of squares with those of spread parameters added up over ranks.

        The last are of those that have a gradient on other ranks only. The number is what this rank
        has to say of gradients that are not finite: in the same message, since all must know of it.
        """
        numbers = self._numbers
        here: list[tuple[Sequence[int], Any]] = []
        for (of_part, _), of_leaves in zip(sums, numbers, strict=True):
            places = [i for i, number in enumerate(of_leaves) if number >= 0]
            if places:
                values = of_part if len(places) == len(of_leaves) else [of_part[i] for i in places]
                here.append(([of_leaves[i] for i in places], values))
        (totals,) = ranks.summed([here], number=number)
        found: list[tuple[SquareSums, Sequence[int]]] = []
        for (of_part, groups), of_leaves in zip(sums, numbers, strict=True):
            if isinstance(of_part, Tensor) or isinstance(totals, Tensor):
                found.append((_with_totals(of_part, of_leaves, totals), groups))
            else:
                pairs = zip(of_leaves, of_part, strict=True)
                found.append(([x if n < 0 else totals[n] for n, x in pairs], groups))
        seen = {number for of_leaves in numbers for number in of_leaves}
        others = [(number, group) for number, group in self._elsewhere if number not in seen]
        if others:
            of_others = [group for _, group in others]
            if isinstance(totals, Tensor):
                found.append((totals[[number for number, _ in others]], of_others))
            else:
                found.append(([totals[number] for number, _ in others], of_others))
        return found

    def _total(
        self, sums: Sequence[tuple[SquareSums, Sequence[int]]], groups: Sequence[int]
    ) -> Any:
        """Return the sum over all leaves of some groups."""
        if any(isinstance(of_part, Tensor) for of_part, _ in sums):
            return self._total_of_tensors(sums, groups)
        if len(groups) == len(self._settings):
            chosen = sums[0][0] if len(sums) == 1 else [x for of_part, _ in sums for x in of_part]
            return exact_sum(chosen)
        wanted = set(groups)
        return exact_sum(
            x
            for of_part, leaf_groups in sums
            for x, group in zip(of_part, leaf_groups, strict=True)
            if group in wanted
        )

    def _total_of_tensors(
        self, sums: Sequence[tuple[SquareSums, Sequence[int]]], groups: Sequence[int]
    ) -> Tensor:
        like = next(of_part for of_part, _ in sums if isinstance(of_part, Tensor))
        found = []
        for part, (of_part, leaf_groups) in enumerate(sums):
            is_there = isinstance(of_part, Tensor)
            tensor = of_part if is_there else torch.tensor(list(of_part), dtype=torch.float64)
            squares = cast("Tensor", tensor).to(like.device, like.dtype, non_blocking=True)
            if not set(leaf_groups) <= set(groups):
                squares = torch.where(self._mask(part, leaf_groups, groups, like), squares, 0.0)
            found.append(squares)
        return torch.cat(found).sum()

    def _mask(
        self, part: int, leaf_groups: Sequence[int], groups: Sequence[int], like: Tensor
    ) -> Tensor:
        """Return which leaves of a runner are of some groups: made once, since making it waits."""
        key = part, tuple(groups), like.device
        if key not in self._masks:
            chosen = [group in groups for group in leaf_groups]
            self._masks[key] = torch.tensor(chosen, dtype=torch.bool, device=like.device)
        return self._masks[key]

    def _is_left_to_device(self, watched: Collection[int]) -> bool:
        """Tell whether the kernels themselves pass a step over, so that nobody waits."""
        return (
            bool(self._runners)
            and all(self._settings[group].on_nonfinite == "skip" for group in watched)
            and all(settings.form.may_be_called_off for settings in self._settings)
            and all(isinstance(runner, CalledOffOnDevice) for runner in self._runners)
        )

    def _call_off(self, total: Tensor) -> Tensor:
        """Have the kernels pass the step over if the total is not finite; return 1 if they will."""
        flag = (~torch.isfinite(total)).to(torch.float32)
        for runner in self._runners:
            either = flag
            if self.found_inf is not None:
                either = torch.maximum(flag, self.found_inf.to(flag.device, flag.dtype))
            cast("CalledOffOnDevice", runner).call_off_by(either)
        return flag

    def _unscaled(self, sums: SquareSums) -> SquareSums:
        """Return sums of squares of gradients as those of what is left of them once divided."""
        scale = self.grad_scale
        if isinstance(scale, float):
            if scale == 1.0:
                return sums
            if not isinstance(sums, Tensor):
                return [x / scale / scale for x in sums]
        wide = torch.as_tensor(sums, dtype=torch.float64)
        scale = torch.as_tensor(scale, dtype=torch.float64)
        return wide / scale.to(wide.device, non_blocking=True).square()

    def _clip_by_known(
        self, norms: LaggedNorms, group: int, sums: Sequence[tuple[SquareSums, Any]]
    ) -> None:
        """Clip the only parameter by norms that are known, to which its own is added."""
        for part, (of_part, _) in zip(self._parts, sums, strict=True):
            numbers = of_part.tolist() if isinstance(of_part, Tensor) else of_part
            (shard,) = part.shards
            if shard is not None and shard.groups:
                norms.add_part(group, shard.owner, sum(numbers))
            else:
                norms.add(group, sum(numbers))
        (settings,) = self._settings
        over = settings.clip_over
        assert over is not None
        self._put(0, norms.factor(group, settings.numbers["clip_grad_norm"], over))

    def _put(self, group: int, factor: Any) -> None:
        if isinstance(factor, Tensor) or factor != self.factors[group]:
            self.factors[group] = math.nan  # until all are told: an interrupt may come
            tell_numbers(self._parts, self._settings, group, factor, self.grad_scale)
            self.factors[group] = factor

    def _are_finite(
        self,
        groups: Collection[int],
        total: Any,
        sums: Sequence[tuple[SquareSums, Any]],
        here: Sequence[tuple[int, int, Tensor]],
    ) -> bool:
        """Tell whether all gradients of these groups are finite, on all ranks.

        Args:
            groups: the groups.
            total: their sum of squares.
            sums: of each runner.
            here: what is not finite here, if ranks have told each other of it.

        Raises:
            RuntimeError: they are not, and one of the groups takes that for an error.
        """
        if isinstance(total, Tensor) and total.is_meta:
            return True
        if self._ranks is not None and self._norms is None:
            found, is_error = here, self._ranks.number >= _ERROR
            is_found = self._ranks.number > 0
        elif math.isfinite(total):
            return True
        else:
            found = self._not_finite(groups, sums)
            is_found, is_error = bool(found), self._is_error(found)
        if is_error:
            raise RuntimeError(self._message(found))
        return not is_found

    def _is_error(self, found: Sequence[tuple[int, int, Tensor]]) -> bool:
        return any(self._settings[group].on_nonfinite == "raise" for group, *_ in found)

    def _not_finite(
        self, groups: Collection[int], sums: Sequence[tuple[SquareSums, Any]]
    ) -> list[tuple[int, int, Tensor]]:
        """Return group, position and gradient of what is not finite.

        Squares may be too large for float64 where numbers are not.
        """
        return [leaf for leaf in self._leaves(groups, sums) if not is_finite(leaf[2])]

    def _leaves(
        self, groups: Collection[int], sums: Sequence[tuple[SquareSums, Any]]
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Yield group, position and gradient where a sum is not finite."""
        for part, (of_part, leaf_groups) in zip(self._parts, sums, strict=False):
            numbers = of_part.tolist() if isinstance(of_part, Tensor) else of_part
            if all(map(math.isfinite, numbers)):
                continue
            grads = part.grads()
            for i, (number, group) in enumerate(zip(numbers, leaf_groups, strict=True)):
                grad = grads[i]
                if group in groups and not math.isfinite(number) and grad is not None:
                    yield group, part.leaf_positions[i], grad

    def _message(self, found: Sequence[tuple[int, int, Tensor]]) -> str:
        named = []
        for group, position, grad in sorted(found, key=lambda leaf: leaf[:2])[:_NAMED]:
            values = grad.coalesce()._values() if grad.is_sparse else grad
            nans = int(torch.isnan(values).sum())
            infinite = int((~torch.isfinite(values)).sum()) - nans
            label = label_of(self._settings[group].group, group, position)
            named.append(f"{label} ({nans} nan, {infinite} infinite of {values.numel()})")
        others = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        named = named or ["none of this process's, some of another's"]
        return (
            f"gradients are not finite: {', '.join(named)}{others}. Nothing was changed. Look at "
            "the loss and its inputs (torch.autograd.set_detect_anomaly(True) finds the "
            "operation); on_nonfinite='skip' passes such steps over"
        )


def _sums_of(part: PlannedRunner, summing: SumsSquares | None) -> SquareSums:
    if summing is not None:
        return summing.square_sums
    return square_sums_of(part.grads())


def _groups_of(settings: Sequence[Settings], spread: Spread) -> list[tuple[int, int]]:
    """Return the number and the group of each parameter that is spread over ranks."""
    return [
        (shard.number, group)
        for group, of_group in enumerate(settings)
        for shard in map(spread.shards.get, of_group.params)
        if shard is not None and shard.groups
    ]


def _with_totals(
    sums: SquareSums, numbers: Sequence[int], totals: Sequence[float] | Tensor
) -> Tensor:
    """Return sums of squares, as a tensor, with those of spread parameters over all ranks."""
    known = torch.as_tensor(totals)
    own = torch.as_tensor(sums, dtype=known.dtype).to(known.device, non_blocking=True)
    places = torch.tensor(numbers, device=known.device)
    return torch.where(places < 0, own, known[places.clamp_min(0)])


def _factor(bound: Any, squares: Any) -> Any:
    if isinstance(bound, Tensor) or isinstance(squares, Tensor):
        return clip_factor(bound, torch.sqrt(torch.as_tensor(squares)))
    return clip_factor(bound, math.sqrt(squares))
