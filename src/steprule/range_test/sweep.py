"""A sweep: steps at a rising lr, each loss noted, until it diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from steprule.range_test.result import LRRangeTest
from steprule.range_test.suggestion import ALL_TAKEN, DATA_ENDED, INTERRUPTED
from steprule.range_test.unchanged import unchanged

Loss = Callable[[nn.Module, Any], Tensor]
_TOGETHER = 3


class _DivergedError(Exception):
    """The loss is not finite, or far above where it began."""


@dataclass
class Sweep:
    """Steps of an optimizer at rising lrs; the arguments are those of ``lr_range_test``, checked.

    Attributes:
        lrs: of the steps that were taken.
        losses: likewise.
        stopped: why it ended.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: Loss
    data: Iterable[Any]
    lr_min: float
    lr_max: float
    steps: int
    smoothing: float
    diverged_at: float
    criterion: nn.Module | None = None
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stopped: str = INTERRUPTED

    def run(self, on_step: Callable[[float, float], object] | None = None) -> None:
        """Take the steps, and put all back; ``on_step`` gets each lr and loss."""
        shares = lr_shares(self.optimizer)
        models = [self.model] if self.criterion is None else [self.model, self.criterion]
        with unchanged(models, self.optimizer, self.data), torch.enable_grad():
            if not self.model.training:
                self.model.train()
            # Optimizers that average weights themselves are told as the model is.
            to_train = getattr(self.optimizer, "train", None)
            if callable(to_train):
                to_train()
            self.stopped = self._steps(shares, on_step)

    def result(self) -> LRRangeTest:
        """Return what was found so far."""
        half = round(self.smoothing * self.steps)
        return LRRangeTest(tuple(self.lrs), tuple(self.losses), self.steps, self.stopped, half)

    def _steps(self, shares: list[float], on_step: Any) -> str:
        batches = self._batches()
        ratio = self.lr_max / self.lr_min
        for number in range(self.steps):
            lr = self.lr_min * ratio ** (number / (self.steps - 1))
            batch = next(batches, None)
            if batch is None:
                return f"{DATA_ENDED} after {number} batches"
            set_lrs(self.optimizer, [share * lr for share in shares])
            try:
                self.optimizer.step(self._closure(batch[0], lr))
            except _DivergedError as error:
                return str(error)
            except (RuntimeError, ArithmeticError):
                if _grads_are_finite(self.optimizer):
                    raise
                return f"the gradients were not finite at lr {lr:.2g}"
            if on_step is not None:
                on_step(lr, self.losses[-1])
        return ALL_TAKEN

    def _batches(self) -> Iterator[tuple[Any]]:
        """Yield batches, from the beginning again where data can be gone through again."""
        is_used_up = hasattr(self.data, "__next__")
        while True:
            count = 0
            for batch in self.data:
                count += 1
                yield (batch,)
            if is_used_up or not count:
                return

    def _closure(self, batch: Any, lr: float) -> Callable[[], Any]:
        is_noted = False

        def closure() -> Any:
            nonlocal is_noted
            self.optimizer.zero_grad()
            loss = self.loss_fn(self.model, batch)
            if not is_noted:  # others are of a search along a line, or of a second pass
                is_noted = True
                self._note(lr, loss)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return closure

    def _note(self, lr: float, loss: Any) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn must return a tensor of one element, got {shown}")
        if not loss.requires_grad:
            raise ValueError(
                "loss_fn returned a loss that depends on no parameter which takes a gradient: is "
                "it computed under no_grad, of .detach() or .item(), or of a frozen part alone?"
            )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _DivergedError(f"the loss was {value} at lr {lr:.2g}")
        self.lrs.append(lr)
        self.losses.append(value)
        lowest, last = min(self.losses), self.losses[-_TOGETHER:]
        first = sum(self.losses[:_TOGETHER]) / len(self.losses[:_TOGETHER])
        bound = lowest + (self.diverged_at - 1) * max(abs(lowest), first - lowest)
        if len(self.losses) > _TOGETHER and min(last) > bound:
            raise _DivergedError(
                f"the loss diverged ({value:.3g} at lr {lr:.2g}, the lowest was {lowest:.3g})"
            )


def lr_shares(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return each group's lr as a share of the largest, as they were before any scheduler.

    Raises:
        ValueError: a group without one.
    """
    groups = optimizer.param_groups
    lrs = []
    for index, group in enumerate(groups):
        given = group.get("initial_lr", group.get("lr"))
        if given is None:
            raise ValueError(
                f"optimizer: group {index} has no lr: {type(optimizer).__name__} finds its own, "
                "so that there is none to be found"
            )
        schedule = group.get("schedules", {}).get("lr")
        # Of a schedule that rises from 0, the highest in sight.
        lrs.append(float(given) if schedule is None else max(map(abs, schedule(range(10_000)))))
    largest = max(lrs, default=0.0)
    return [lr / largest if largest > 0 else 1.0 for lr in lrs]


def set_lrs(optimizer: torch.optim.Optimizer, lrs: list[float]) -> None:
    """Set each group's lr; in place where it is a tensor."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].detach().fill_(lr)
        else:
            group["lr"] = lr


def _grads_are_finite(optimizer: torch.optim.Optimizer) -> bool:
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    found = [g.coalesce().values() if g.is_sparse else g for g in grads if g is not None]
    return all(bool(torch.isfinite(grad).all()) for grad in found)
