"""A part of the lr at first, all of it later: ConstantLR and LinearLR."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler.pure import FactorLR
from steprule.schedules import Schedule, checks, constant, linear, piecewise


class ConstantLR(FactorLR):
    """Multiply by `factor` until epoch `total_iters`: base_lr * factor, then base_lr.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        factor: from 0 to 1, default 1/3.
        total_iters: epochs it lasts, whole and not negative, default 5. With 0 the factor stays
            for ever, as in torch.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        TypeError, ValueError: `factor` or `total_iters` is no such number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.factor = checks.number("factor", factor, low=0)
        if self.factor > 1:
            raise ValueError(f"factor must be between 0 and 1, got {factor!r}")
        self.total_iters = checks.whole("total_iters", total_iters)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factor(self, epoch: int) -> float:
        return 1.0 if 0 < self.total_iters <= epoch else self.factor

    def _ratio(self, epoch: int) -> float:
        if epoch <= 0:
            return self.factor
        # From a factor of 0 there is no way back for an lr that somebody else changed.
        return 1.0 / self.factor if epoch == self.total_iters and self.factor else 1.0

    def _pure(self, index: int, base: float) -> Schedule:
        if not self.total_iters:
            return constant(base * self.factor)
        return piecewise({0: base * self.factor, self.total_iters: base})


class LinearLR(FactorLR):
    """Move the factor in a line from `start_factor` to `end_factor` over `total_iters` epochs.

    lr = base_lr * (start + (end - start) * min(epoch, total_iters) / total_iters)

    Args:
        optimizer: any `torch.optim.Optimizer`.
        start_factor: above 0, at most 1, default 1/3.
        end_factor: from 0 to 1, default 1.
        total_iters: epochs it takes, not negative, default 5. With 0 the start factor stays for
            ever, as in torch.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        TypeError, ValueError: an argument is no such number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.start_factor = checks.number("start_factor", start_factor, above=0)
        if self.start_factor > 1:
            raise ValueError(f"start_factor must be above 0 and at most 1, got {start_factor!r}")
        self.end_factor = checks.number("end_factor", end_factor, low=0)
        if self.end_factor > 1:
            raise ValueError(f"end_factor must be between 0 and 1, got {end_factor!r}")
        self.total_iters = total_iters
        checks.number("total_iters", total_iters, low=0)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factor(self, epoch: int) -> float:
        # A total with a fraction stops at its last whole epoch, where torch's recursion stops.
        done = min(int(self.total_iters), epoch)
        if not done:
            return self.start_factor
        return self.start_factor + (self.end_factor - self.start_factor) * done / self.total_iters

    def _ratio(self, epoch: int) -> float:
        if epoch <= 0:
            return self.start_factor
        if epoch > self.total_iters:
            return 1.0
        rise = self.end_factor - self.start_factor
        return 1.0 + rise / (self.total_iters * self.start_factor + (epoch - 1) * rise)

    def _pure(self, index: int, base: float) -> Schedule:
        steps = int(self.total_iters)
        if not steps:
            return constant(base * self.start_factor)
        return linear(base * self.start_factor, base * self._factor(steps), steps=steps)
