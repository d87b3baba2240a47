"""ReduceLROnPlateau: lower the lr when a metric stops improving."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch.optim import Optimizer

from steprule.lr_scheduler import calls, groups
from steprule.lr_scheduler.base import LRScheduler, Verbose
from steprule.lr_scheduler.groups import Rate
from steprule.lr_scheduler.torch_names import EPOCH_DEPRECATION_WARNING
from steprule.schedules import checks

Init = TypeVar("Init", bound=Callable[..., None])

# The order of the article's time, with verbose in the fifth place.
_ARTICLE = ("verbose", "threshold", "threshold_mode", "cooldown", "min_lr", "eps")


def _takes_the_articles_order(init: Init) -> Init:
    """Let a truth value in the fifth place be `verbose`, and what follows it move up with it.

    That place is the threshold's today, which is no truth value, so nothing else can be meant.
    """

    @functools.wraps(init)
    def reordered(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > 4 and isinstance(args[4], bool):
            late = args[4:]
            if len(late) > len(_ARTICLE):
                raise TypeError(
                    f"ReduceLROnPlateau takes at most {len(_ARTICLE) + 4} positional arguments "
                    f"with verbose in the fifth place, got {len(args)}"
                )
            named = dict(zip(_ARTICLE, late, strict=False))
            if twice := sorted(named.keys() & kwargs.keys()):
                raise TypeError(
                    f"ReduceLROnPlateau got {' and '.join(twice)} twice: by position, with "
                    "verbose in the fifth place, and by name"
                )
            args, kwargs = args[:4], {**named, **kwargs}
        init(self, *args, **kwargs)

    return cast(Init, reordered)


class ReduceLROnPlateau(LRScheduler):
    """Multiply the lr by `factor` when the metric has not improved for `patience` epochs.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        mode: "min" (default) or "max": which way the metric improves.
        factor: what the lr is multiplied by, below 1, default 0.1.
        patience: epochs without improvement that are put up with, default 10.
        threshold: how much better counts as better, default 1e-4.
        threshold_mode: "rel" (default): better than best * (1 - threshold), or (1 + threshold)
            in "max" mode; "abs": better by `threshold`.
        cooldown: epochs to wait after a reduction before counting again, default 0.
        min_lr: lowest lr, a number or one for each group, default 0.
        eps: reductions not larger than this are not made, default 1e-8.
        verbose: True prints a line at each reduction; a function gets that line instead.
        sign_aware: measure a relative threshold from abs(best), so that a negative metric works;
            default False, as in torch, where best * (1 - threshold) is then above best.
        nan_is_bad: count a metric that is nan as no improvement, as torch does, instead of
            refusing it; default False.

    A truth value in the fifth place is `verbose`, and `threshold`, `threshold_mode`, `cooldown`,
    `min_lr` and `eps` follow it: the order in which old scripts have them.

    Raises:
        ValueError: an argument out of range, or not as many `min_lr` as groups.
    """

    @_takes_the_articles_order
    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0,
        eps: float = 1e-8,
        verbose: Verbose = False,
        *,
        sign_aware: bool = False,
        nan_is_bad: bool = False,
    ) -> None:
        groups.check_optimizer(optimizer)
        self._attach(optimizer, verbose, hold_on_skip=False)
        self.factor = checks.number("factor", factor)
        if self.factor >= 1:
            raise ValueError(f"factor must be below 1, got {factor!r}")
        self.min_lrs = groups.rates("min_lr", optimizer, min_lr)
        self.default_min_lr = None if isinstance(min_lr, (list, tuple)) else min_lr
        if not (
            isinstance(patience, float) and patience == math.inf
        ):  # which switches a plateau off
            checks.number("patience", patience)
        self.patience = patience
        self.cooldown = cooldown
        checks.number("cooldown", cooldown)
        self.eps = checks.number("eps", eps)
        self.sign_aware = checks.switch("sign_aware", sign_aware)
        self.nan_is_bad = checks.switch("nan_is_bad", nan_is_bad)
        self.last_epoch = 0
        self.base_lrs = [
            groups.copied(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups
        ]
        self._last_lr = groups.held(optimizer)
        self._init_is_better(mode, threshold, threshold_mode)
        self._reset()

    def _init_is_better(self, mode: str, threshold: float, threshold_mode: str) -> None:
        self.mode = checks.one_of("mode", mode, ("min", "max"))
        self.threshold = checks.number("threshold", threshold)
        self.threshold_mode = checks.one_of("threshold_mode", threshold_mode, ("rel", "abs"))
        self.mode_worse = math.inf if mode == "min" else -math.inf

    def _reset(self) -> None:
        """Forget the metrics seen."""
        self.best = self.mode_worse
        self.cooldown_counter = 0
        self.num_bad_epochs = 0

    def _initial_step(self) -> None:
        """Begin anew inside a composite; the lr stays as it is."""
        self.last_epoch = 0
        self._reset()

    def get_lr(self) -> list[Rate]:
        """Return the lr of each group now in force.

        Raises:
            NotImplementedError: the next lr is asked for, as Ignite's LRScheduler does.
        """
        self._refuse_to_be_asked("that library's own plateau")
        return groups.held(self.optimizer)

    @calls.out_of_graphs
    def step(self, metrics: Any = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in this epoch's metric, and lower the lr if it is time.

        Args:
            metrics: the metric, a number or a tensor of one element.
            epoch: deprecated; the epoch this is.

        Raises:
            TypeError: `metrics` is not a number.
            ValueError: `metrics` is nan (see `nan_is_bad`).
        """
        current = self._number(metrics)
        if epoch is not None:
            groups.check_epoch(epoch)
            warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=3)
        before = self.last_epoch, self.best, self.cooldown_counter, self.num_bad_epochs
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        try:
            self._take_in(current)
        except BaseException:
            self.last_epoch, self.best, self.cooldown_counter, self.num_bad_epochs = before
            raise
        self._last_lr = groups.held(self.optimizer)

    def _take_in(self, current: float) -> None:
        if self._is_better(current, self.best):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce_lr(self.last_epoch)
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0

    def _number(self, metrics: Any) -> float:
        current = groups.number_or_none(metrics)
        if current is None:
            raise TypeError(
                f"metrics must be a number, got {metrics!r}: call step(metric), with the value "
                "that should improve"
            )
        if math.isnan(current) and not self.nan_is_bad:
            raise ValueError(
                "metrics is nan, which is neither better nor worse: find where it comes from, or "
                "build with nan_is_bad=True to count it as no improvement"
            )
        return current

    @property
    def in_cooldown(self) -> bool:
        """Whether epochs are still waited for after a reduction."""
        return self.cooldown_counter > 0

    def _is_better(self, a: float, best: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "abs":
            bound = best + sign * self.threshold
        elif self.sign_aware and math.isfinite(best):
            bound = best + sign * self.threshold * abs(best)
        else:
            bound = best * (1.0 + sign * self.threshold)
        return bool(a < bound if self.mode == "min" else a > bound)

    is_better = _is_better  # its name in torch 2.5

    def _reduce_lr(self, epoch: int) -> None:
        groups.say_which_is_none(type(self).__name__, self.optimizer, ("lr",))
        lrs = groups.read(self.optimizer, self._exact)
        last = 0.0 if not self.min_lrs else self.min_lrs[-1]
        floor = last if self.default_min_lr is None else self.default_min_lr
        self.min_lrs += [floor] * (len(lrs) - len(self.min_lrs))
        lowered = [
            max(lr * self.factor, float(least))
            for lr, least in zip(lrs, self.min_lrs, strict=False)
        ]
        self._set(
            [new if old - new > self.eps else old for old, new in zip(lrs, lowered, strict=True)]
        )

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(state_dict, kept)
        self._init_is_better(self.mode, self.threshold, self.threshold_mode)
