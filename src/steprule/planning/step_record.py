"""What the guards saw at the last step, kept until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steprule.engines.square_sums import SquareSums


@dataclass(frozen=True)
class LastStep:
    """The last step of an optimizer, as its guards saw it.

    Attributes:
        grad_norm: the 2-norm of all gradients together before clipping, in float64; None if no
            guard was on (``clip_grad_norm=inf`` measures, and clips nothing).
        clip_factor: what gradients were multiplied by, at most 1: the smallest among the groups;
            None if none was clipped by norm.
        group_norms: the norm of each group's gradients; empty if no guard was on.
        group_clip_factors: the factor of each group, None for one that is not clipped by norm.
        skipped: whether the step was passed over, its gradients not being finite.
        skipped_so_far: how many steps of this object were.
    """

    grad_norm: float | None = None
    clip_factor: float | None = None
    group_norms: tuple[float, ...] = ()
    group_clip_factors: tuple[float | None, ...] = ()
    skipped: bool = False
    skipped_so_far: int = 0


@dataclass
class StepRecord:
    """What guards leave behind; numbers on another device are not waited for.

    Attributes:
        sums: of each runner, the sums of squares of its leaves' gradients and their groups; None
            if no guard was on.
        factors: of each group, what its gradients were multiplied by; None for no clipping.
        skipped: whether the step was passed over; a tensor of 1 or 0 where the device decides.
        skipped_so_far: how many were, likewise.
    """

    sums: Sequence[tuple[SquareSums, Sequence[int]]] | None = None
    factors: Sequence[Any] = ()
    skipped: bool | Tensor = False
    skipped_so_far: int | Tensor = 0

    def note(
        self,
        sums: Sequence[tuple[SquareSums, Sequence[int]]],
        factors: Sequence[Any],
        called_off: Tensor | None = None,
    ) -> None:
        """Note what was seen and decided; no graph of it is kept."""
        self.sums = [(_detached(of_part), groups) for of_part, groups in sums]
        self.factors = [_detached(factor) for factor in factors]
        self.skipped = False
        if called_off is not None:
            self.skipped = called_off
            self.skipped_so_far = self.skipped_so_far + called_off

    def note_skipped(self, sums: Sequence[tuple[SquareSums, Sequence[int]]], groups: int) -> None:
        """Note a step that was passed over, of so many groups."""
        self.note(sums, [None] * groups)
        self.skipped = True
        self.skipped_so_far += 1

    def clear(self) -> None:
        """Note a step without guards."""
        self.sums, self.factors, self.skipped = None, (), False

    def as_seen(self) -> LastStep:
        """Return it as plain numbers."""
        if self.sums is None:
            return LastStep(skipped_so_far=int(self.skipped_so_far))
        squares: list[list[float]] = [[] for _ in self.factors]
        for sums, groups in self.sums:
            for square, group in zip(_numbers(sums), groups, strict=True):
                squares[group].append(square)
        factors = tuple(None if f is None else float(f) for f in self.factors)
        return LastStep(
            grad_norm=math.sqrt(exact_sum(x for of_group in squares for x in of_group)),
            clip_factor=min((f for f in factors if f is not None), default=None),
            group_norms=tuple(math.sqrt(exact_sum(of_group)) for of_group in squares),
            group_clip_factors=factors,
            skipped=bool(self.skipped),
            skipped_so_far=int(self.skipped_so_far),
        )


def exact_sum(numbers: Iterable[float]) -> float:
    """Return the sum, rounded once: the same in any order. Infinite or nan where a number is."""
    listed = numbers if isinstance(numbers, Sequence) else list(numbers)
    try:
        return math.fsum(listed)
    except (OverflowError, ValueError):
        return sum(listed)


def _numbers(sums: SquareSums) -> Sequence[float]:
    if isinstance(sums, Tensor):
        found: list[float] = sums.tolist()
        return found
    return sums


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x
