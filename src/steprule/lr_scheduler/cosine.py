"""Cosine annealing, once or with warm restarts."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import calls, groups
from steprule.lr_scheduler.pure import AbsoluteLR, PureLR
from steprule.schedules import Schedule, checks, cosine, cosine_restarts


class CosineAnnealingLR(PureLR):
    """Half a cosine from the base lr to `eta_min` in `T_max` epochs.

    lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2

    Past T_max the cosine rises again, as in torch; with `hold_last` it stays at `eta_min`.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        T_max: epochs to the lowest lr, above 0.
        eta_min: lowest lr, default 0.
        last_epoch, verbose, options: as `LRScheduler`.
        hold_last: stay at `eta_min` past T_max, default False.

    Source: Loshchilov and Hutter, SGDR, 2017, equation 5, without its restarts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803
        eta_min: float = 0.0,
        last_epoch: int = -1,
        verbose: Any = False,
        *,
        hold_last: bool = False,
        **options: Any,
    ) -> None:
        self.T_max = T_max
        checks.number("T_max", T_max, above=0)
        self.eta_min = eta_min
        checks.number("eta_min", eta_min)
        self.hold_last = checks.switch("hold_last", hold_last)
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _key(self, epoch: float) -> tuple[float, float]:
        if self.hold_last and epoch > self.T_max:
            epoch = self.T_max
        return (1 + math.cos(math.pi * epoch / self.T_max)) / 2, self.eta_min

    def _closed(self, epoch: Any) -> list[float]:
        left, low = self._key(epoch)
        return [low + (base - low) * left for base in self._bases]

    def _chain(self, lr: float, base: float, epoch: int) -> float:
        if self._is_initial or (self.hold_last and epoch > self.T_max):
            return lr
        if self._step_count == 1 and epoch > 0:
            # Nobody calls step(): Ignite moves last_epoch itself, and asks for epoch 0 once more.
            left, low = self._key(epoch)
            return low + (base - low) * left
        if (epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            # Just past the lowest point there is no ratio: rise by the closed form's difference.
            return lr + (base - self.eta_min) * (1 - math.cos(math.pi / self.T_max)) / 2
        left = 1 + math.cos(math.pi * epoch / self.T_max)
        before = 1 + math.cos(math.pi * (epoch - 1) / self.T_max)
        return left / before * (lr - self.eta_min) + self.eta_min

    def _pure(self, index: int, base: float) -> Schedule:
        fall = cosine(base, self.eta_min, steps=self.T_max)
        if self.hold_last:
            return fall
        rise = cosine(self.eta_min, base, steps=self.T_max)
        return fall.then(rise, at=self.T_max).repeat(2 * self.T_max)


class CosineAnnealingWarmRestarts(AbsoluteLR):
    """Half cosines from the base lr to `eta_min`, starting again at the top each time.

    lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * T_cur / T_i)) / 2, where T_cur counts the
    epochs since the last restart and T_i is the length of the present cycle.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        T_0: epochs of the first cycle, whole, at least 1.
        T_mult: each cycle's length over the one before, whole, at least 1, default 1.
        eta_min: lowest lr, default 0.
        last_epoch, verbose, options: as `LRScheduler`.

    Source: Loshchilov and Hutter, SGDR, 2017.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_0: int,  # noqa: N803
        T_mult: int = 1,  # noqa: N803
        eta_min: float = 0.0,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        self.T_0 = self.T_i = checks.whole("T_0", T_0, low=1)
        self.T_mult = checks.whole("T_mult", T_mult, low=1)
        self.eta_min = eta_min
        checks.number("eta_min", eta_min)
        self.T_cur: float = last_epoch
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _locate(self, epoch: float) -> tuple[float, int]:
        """Epochs since the last restart before `epoch`, and the length of that cycle."""
        if self.T_mult == 1:
            return epoch % self.T_0, self.T_0
        length = self.T_0
        while epoch >= length:
            epoch -= length
            length *= self.T_mult
        return epoch, length

    def _values(self, into: float, length: int) -> list[float]:
        left = (1 + math.cos(math.pi * into / length)) / 2
        low = self.eta_min
        return [low + (base - low) * left for base in self._bases]

    def _closed(self, epoch: Any) -> list[float]:
        return self._values(*self._locate(epoch))

    def _next(self, lrs: list[float]) -> list[float]:
        return self._values(self.T_cur, self.T_i)

    _opening = _next

    @calls.out_of_graphs
    def step(self, epoch: float | None = None) -> None:
        """Go to the next epoch, or to `epoch`, which may be a fraction: i + batch / batches.

        Raises:
            ValueError: `epoch` is negative.
            TypeError: it is no number.
        """
        if epoch is not None:
            groups.check_epoch(epoch)
        if epoch is not None and epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch!r}")
        if self._may_step(stacklevel=3):
            self._step_count += 1
            self._update_lr(epoch)

    def _update_lr(self, epoch: float | None = None) -> None:
        before = self.last_epoch, self.T_cur, self.T_i
        if epoch is not None or self._is_initial or self.last_epoch < 0:
            self.T_cur, self.T_i = self._locate(self.last_epoch + 1 if epoch is None else epoch)
        else:
            self.T_cur += 1
            if self.T_cur >= self.T_i:
                self.T_cur %= self.T_i
                self.T_i *= self.T_mult
        # The lr is set from T_cur, so the base class is told where to stand, not how to get there.
        self.last_epoch = self.last_epoch if epoch is None else math.floor(epoch) - 1
        try:
            super()._update_lr(None)
        except BaseException:
            self.last_epoch, self.T_cur, self.T_i = before
            raise

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(state_dict, kept)
        if kept & {"T_0", "T_mult"} and self.last_epoch >= 0:
            # The cycles are others, so the place in them is another; last_epoch has no fraction.
            self.T_cur, self.T_i = self._locate(self.last_epoch + self.T_cur % 1)

    def _pure(self, index: int, base: float) -> Schedule:
        return cosine_restarts(base, self.eta_min, steps=self.T_0, cycle_mult=self.T_mult)
