"""SWALR, and the rest of torch.optim.swa_utils so that a script's imports stay as they are."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim import swa_utils as torchs
from torch.optim.swa_utils import PARAM_LIST as PARAM_LIST
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

from steprule.drop_in import pass_for_torchs
from steprule.lr_scheduler import groups
from steprule.lr_scheduler.annealing import strategy_of
from steprule.lr_scheduler.base import LRScheduler
from steprule.lr_scheduler.pure import PureLR
from steprule.lr_scheduler.torch_names import helper
from steprule.schedules import Schedule, checks, constant, cosine, linear


class SWALR(PureLR):
    """Move each lr to `swa_lr` over `anneal_epochs` epochs and keep it there.

    lr = base_lr * (1 - a) + swa_lr * a, where a goes from 0 to 1 in a line or in half a cosine.
    Stepped only from some epoch on, it starts from the lr it finds then.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        swa_lr: the lr to reach, a number or one for each group.
        anneal_epochs: epochs it takes, whole, default 10; with 0 `swa_lr` holds at once.
        anneal_strategy: "cos" (default) or "linear".
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        TypeError, ValueError: an argument is out of range.
    """

    _unsaved = PureLR._unsaved | {"anneal_func"}

    # torch has no closed form here: it always goes on from the lr it finds.
    _get_closed_form_lr = None  # type: ignore[assignment]

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        groups.check_optimizer(optimizer)
        self._swa_lrs = groups.rates("swa_lr", optimizer, swa_lr)
        self._set_anneal_func(anneal_strategy)
        self.anneal_epochs = checks.whole("anneal_epochs", anneal_epochs)
        with groups.unchanged(optimizer):
            for group, lr in zip(optimizer.param_groups, self._swa_lrs, strict=True):
                group["swa_lr"] = lr
            super().__init__(optimizer, last_epoch, verbose, **options)

    def anneal_func(self, t: float) -> float:
        """Share of the way done at share `t` of the time."""
        return t if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * t)) / 2

    def _set_anneal_func(self, anneal_strategy: str) -> None:
        self._anneal_strategy = checks.one_of("anneal_strategy", anneal_strategy, ("cos", "linear"))

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        old = state_dict.get("anneal_func")
        if old is not None and "_anneal_strategy" not in state_dict:  # as torch 2.5 saves it
            state_dict = {**state_dict, "_anneal_strategy": strategy_of(old)}
        super()._load(state_dict, kept)

    def _alpha(self, epoch: int) -> float:
        if not self.anneal_epochs:
            return 1.0
        return self.anneal_func(max(0.0, min(1.0, epoch / self.anneal_epochs)))

    def _targets(self) -> list[float]:
        """Return each group's swa_lr: its own, or the last known for a group that came without."""
        param_groups = self.optimizer.param_groups
        try:
            return groups.floats([group["swa_lr"] for group in param_groups])
        except KeyError:
            for index, group in enumerate(param_groups):
                group.setdefault("swa_lr", self._swa_lrs[min(index, len(self._swa_lrs) - 1)])
            return self._targets()

    def _closed(self, epoch: Any) -> list[float]:
        targets = self._targets()
        alpha = self._alpha(epoch)
        if alpha == 1:
            return targets
        left = 1 - alpha
        return [
            target * alpha + base * left for base, target in zip(self._bases, targets, strict=False)
        ]

    def _next(self, lrs: list[float]) -> list[float]:
        epoch = self.last_epoch
        alpha, before = self._alpha(epoch), self._alpha(epoch - 1)
        result = []
        for lr, old, new, target in zip(
            lrs, self._closed(epoch - 1), self._closed(epoch), self._targets(), strict=False
        ):
            if lr == old and epoch > 0:
                result.append(new)
                continue
            start = target if before == 1 else (lr - before * target) / (1 - before)
            result.append(target * alpha + start * (1 - alpha))
        return result

    def _pure(self, index: int, base: float) -> Schedule:
        target = self._targets()[index]
        if not self.anneal_epochs:
            return constant(target)
        shape = cosine if self._anneal_strategy == "cos" else linear
        return shape(base, target, steps=self.anneal_epochs)


__all__ = [
    "SWALR",
    "AveragedModel",
    "LRScheduler",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]

pass_for_torchs([SWALR], torchs)


def __getattr__(name: str) -> Any:
    """torch's helpers of schedulers, which its module of this name has as well."""
    return helper(name, __name__)
