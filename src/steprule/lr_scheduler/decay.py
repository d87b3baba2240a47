"""Decay in stairs, by a constant ratio, or by a power of what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler.pure import FactorLR
from steprule.schedules import (
    Schedule,
    checks,
    constant,
    exponential,
    piecewise,
    polynomial,
    step_decay,
)


def power(gamma: float, exponent: float) -> float:
    """gamma**exponent, infinite where it is too large, as repeated multiplication gives."""
    try:
        return float(gamma**exponent)
    except OverflowError:
        return float("inf")


class StepLR(FactorLR):
    """Multiply by `gamma` every `step_size` epochs: base_lr * gamma**(epoch // step_size).

    Args:
        optimizer: any `torch.optim.Optimizer`.
        step_size: epochs between decays, at least 1.
        gamma: the ratio, default 0.1.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        TypeError, ValueError: `step_size` or `gamma` is no such number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.step_size = checks.whole("step_size", step_size, low=1)
        self.gamma = checks.number("gamma", gamma)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factor(self, epoch: int) -> float:
        return power(self.gamma, epoch // self.step_size)

    def _ratio(self, epoch: int) -> float:
        return self.gamma if epoch > 0 and epoch % self.step_size == 0 else 1.0

    def _pure(self, index: int, base: float) -> Schedule:
        return step_decay(base, self.gamma, every=self.step_size)


class MultiStepLR(FactorLR):
    """Multiply by `gamma` at each milestone: base_lr * gamma**(milestones not after the epoch).

    Args:
        optimizer: any `torch.optim.Optimizer`.
        milestones: epochs, whole and not negative; one given twice counts twice.
        gamma: the ratio, default 0.1.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        TypeError, ValueError: `milestones` or `gamma` is no such number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.milestones = Counter(
            checks.whole("milestones", epoch) for epoch in checks.listed("milestones", milestones)
        )
        self.gamma = checks.number("gamma", gamma)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        saved = state_dict.get("milestones")
        if isinstance(saved, dict):  # as JSON and the like keep a Counter
            state_dict = {**state_dict, "milestones": Counter(saved)}
        super()._load(state_dict, kept)

    def _factor(self, epoch: int) -> float:
        passed = sum(count for begin, count in self.milestones.items() if begin <= epoch)
        return power(self.gamma, passed)

    def _ratio(self, epoch: int) -> float:
        return power(self.gamma, self.milestones[epoch])

    def _pure(self, index: int, base: float) -> Schedule:
        begins = sorted({0, *self.milestones})
        return piecewise({begin: base * self._factor(begin) for begin in begins})


class ExponentialLR(FactorLR):
    """Multiply by `gamma` every epoch: base_lr * gamma**epoch.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        gamma: the ratio.
        last_epoch, verbose, options: as `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.gamma = checks.number("gamma", gamma)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factor(self, epoch: int) -> float:
        return power(self.gamma, epoch)

    def _ratio(self, epoch: int) -> float:
        return 1.0 if self._is_initial else self.gamma

    def _pure(self, index: int, base: float) -> Schedule:
        return exponential(base, self.gamma)


class PolynomialLR(FactorLR):
    """A power of what is left: base_lr * (1 - min(epoch, total_iters) / total_iters)**power.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        total_iters: epochs until 0, not negative, default 5; with 0 nothing ever changes.
        power: exponent, default 1.0.
        last_epoch, verbose, options: as `LRScheduler`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_iters: int = 5,
        power: float = 1.0,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.total_iters = total_iters
        checks.number("total_iters", total_iters, low=0)
        self.power = checks.number("power", power)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factor(self, epoch: int) -> float:
        if not self.total_iters:
            return 1.0
        # A total with a fraction stops at its last whole epoch, where torch's recursion stops.
        return float((1.0 - min(int(self.total_iters), epoch) / self.total_iters) ** self.power)

    def _ratio(self, epoch: int) -> float:
        if self._is_initial or epoch > self.total_iters:
            return 1.0
        left, before = self.total_iters - epoch, self.total_iters - (epoch - 1)
        return float((left / before) ** self.power)

    def _pure(self, index: int, base: float) -> Schedule:
        if not self.total_iters:
            return constant(base)
        return polynomial(base, 0.0, steps=self.total_iters, power=self.power)
