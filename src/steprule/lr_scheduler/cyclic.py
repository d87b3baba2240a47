"""CyclicLR: a triangle wave."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.function_schedule import FunctionSchedule
from steprule.lr_scheduler.lambdas import _attributes
from steprule.lr_scheduler.momentum import MomentumLR
from steprule.schedules import Schedule, checks, cyclic
from steprule.schedules.cycles import CYCLE_MODES


def _triangular(_cycle: float) -> float:
    return 1.0


def _triangular2(cycle: float) -> float:
    return float(2.0 ** (1 - cycle))


def _exp_range(gamma: float, step: float) -> float:
    return float(gamma**step)


class CyclicLR(MomentumLR):
    """Move the lr up from `base_lr` to `max_lr` and down again, for ever.

    lr = base_lr + (max_lr - base_lr) * height * scale; height goes 0, 1, 0 in a cycle, and scale
    is 1 (triangular), 1/2 per cycle done (triangular2), or gamma**step (exp_range). Momentum
    moves the other way. Step it once for each batch.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        base_lr: lowest lr, a number or one for each group.
        max_lr: highest lr, a number or one for each group.
        step_size_up: steps of the rise, above 0, default 2000.
        step_size_down: steps of the fall, default as the rise.
        mode: "triangular" (default), "triangular2" or "exp_range".
        gamma: ratio of "exp_range", default 1.
        scale_fn: own scale instead of `mode`: a function of the cycle (first 1) or of the step.
        scale_mode: what `scale_fn` is given, "cycle" (default) or "iterations".
        cycle_momentum: move momentum, or beta1, as well, default True.
        base_momentum, max_momentum: its limits, default 0.8 and 0.9, or one for each group.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        ValueError: a wrong mode or size, lists that do not fit the groups, or momentum to be
            cycled in an optimizer without any.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2017.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | list[float],
        max_lr: float | list[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | list[float] = 0.8,
        max_momentum: float | list[float] = 0.9,
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        groups.check_optimizer(optimizer)
        last_epoch = checks.whole("last_epoch", last_epoch, low=-1)
        lows = groups.rates("base_lr", optimizer, base_lr)
        self.max_lrs = groups.rates("max_lr", optimizer, max_lr)
        up = checks.number("step_size_up", step_size_up, above=0)
        down = up if step_size_down is None else step_size_down
        self.total_size = up + checks.number("step_size_down", down, above=0)
        self.step_ratio = up / self.total_size
        if scale_fn is None:
            checks.one_of("mode", mode, CYCLE_MODES)
        elif not callable(scale_fn):
            raise TypeError(f"scale_fn must be a function, got {scale_fn!r}")
        self.mode = mode
        self.gamma = checks.number("gamma", gamma)
        self._scale_fn_custom = scale_fn
        self.scale_mode = checks.one_of("scale_mode", scale_mode, ("cycle", "iterations"))
        self._init_scale_fn()
        with groups.unchanged(optimizer):
            self.base_momentums, self.max_momentums = self._prepare_momentum(
                optimizer, cycle_momentum, base_momentum, max_momentum, last_epoch
            )
            if last_epoch == -1:
                groups.write(optimizer, lows)
            super().__init__(optimizer, last_epoch, verbose, **options)
        # The first lr is the groups' initial lr, which an earlier scheduler may have set, as in
        # torch; from then on it is the argument.
        self.base_lrs = lows

    def _init_scale_fn(self) -> None:
        """Set what the scale is a function of, which the mode says unless it is the user's own."""
        if self._scale_fn_custom is None:
            self.scale_mode = "iterations" if self.mode == "exp_range" else "cycle"

    def scale_fn(self, x: float) -> float:
        """Return the scale at cycle `x` (first 1), or at step `x` in "iterations" mode."""
        scale = self._scale_fn_ref if self._scale_fn_custom is None else self._scale_fn_custom
        return scale(x)

    def _say_what_is_no_number(self, epoch: Any) -> None:
        scale = self.scale_fn(1)
        if groups.number_or_none(scale) is None:
            raise TypeError(f"scale_fn must return a number, got {scale!r}")

    @property
    def _scale_fn_ref(self) -> Callable[[float], float]:
        """The scale that the mode means; torch keeps it under this name."""
        if self.mode == "exp_range":
            return functools.partial(_exp_range, self.gamma)
        return _triangular2 if self.mode == "triangular2" else _triangular

    def _height(self, epoch: int) -> float:
        """Height times scale at `epoch`, from the position in the cycle, which is exact."""
        cycle = math.floor(epoch / self.total_size)
        into = epoch - cycle * self.total_size
        up = self.step_ratio * self.total_size
        height = into / up if into <= up else (self.total_size - into) / (self.total_size - up)
        return height * self.scale_fn(cycle + 1 if self.scale_mode == "cycle" else epoch)

    def _key(self, epoch: int) -> int:
        return 0  # it is on its closed form whatever stood there before, and that is plain

    def _closed(self, epoch: Any) -> list[float]:
        height = self._height(epoch)
        pairs = zip(self._bases, self.max_lrs, strict=False)
        return groups.floats([low + (high - low) * height for low, high in pairs])

    def _momenta(self, epoch: int) -> list[float]:
        height = self._height(epoch)
        limits = zip(self.base_momentums, self.max_momentums, strict=True)
        return [high - (high - low) * height for low, high in limits]

    def _adopt(self) -> None:
        for group in self.optimizer.param_groups[len(self.max_lrs) :]:
            self.max_lrs.append(self.max_lrs[-1])
            group["initial_lr"] = self.base_lrs[-1]
            if self.cycle_momentum:
                self.base_momentums.append(self.base_momentums[-1])
                self.max_momentums.append(self.max_momentums[-1])
                self._equip_momentum(group, self.base_momentums[-1], self.max_momentums[-1])
        super()._adopt()

    def state_dict(self) -> dict[str, Any]:
        """As the base class; a `scale_fn` of your own is saved only by its attributes."""
        state = super().state_dict()
        custom = self._scale_fn_custom
        state["_scale_fn_custom"] = None if custom is None else _attributes(custom)
        return state

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        # torch saves functions that follow from the mode, an old one in the place of a method.
        super()._load(state_dict, kept | {"_scale_fn_custom", "_scale_fn_ref", "scale_fn"})
        self._init_scale_fn()
        saved = state_dict.get("_scale_fn_custom")
        if saved and self._scale_fn_custom is not None:
            vars(self._scale_fn_custom).update(groups.copied(saved))

    def _pure(self, index: int, base: float) -> Schedule:
        # Saved as a ratio, as in torch, a whole number may come back a hair beside itself.
        up = round(self.step_ratio * self.total_size, 6)
        if self._scale_fn_custom is not None or not up.is_integer():
            return FunctionSchedule(lambda epoch: self._closed(epoch)[index], 1.0)
        return cyclic(
            base,
            float(self.max_lrs[index]),
            up=int(up),
            down=int(self.total_size - up),
            mode=self.mode,
            gamma=self.gamma,
        )
