"""``log_to``: learning rates, norms and the size of updates, every so many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.lr_scheduler.calls import that_step
from steprule.optimizer import Optimizer
from steprule.optimizer.scheduled import STEP, steps_seen
from steprule.planning.step_record import StepRecord
from steprule.schedules import checks
from steprule.step_log.norms import norms_of
from steprule.step_log.writers import Writer, write_to


def log_to(
    writer: Writer,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 50,
    prefix: str = "optimizer",
    start: int | None = None,
) -> StepLog:
    """Write what an optimizer does, every so many of its steps.

    ::

        writer = torch.utils.tensorboard.SummaryWriter()      # or a run of wandb, or a function
        log = steprule.log_to(writer, optimizer, every=50)
        ...
        log.remove()

    By group, under ``prefix/what/group`` (``prefix/what`` where there is one group alone):

    - ``lr``: that the step was taken with, whoever set it;
    - ``grad_norm``: the 2-norm of the gradients as ``step()`` finds them, before guards clip them
      (as the guards saw it where one is on), and of all groups together under
      ``prefix/grad_norm``;
    - ``update_ratio``: the norm of what the step changed, over the norm of the weights before it.
      About 1e-3 is usual for Adam; it says sooner than the loss that an lr is off;
    - ``weight_norm``: the norm of the weights after the step.

    Of a step that was passed over, ``skipped`` is 1 and there is no ``update_ratio``; those that
    guards skip are written at once, whether it is their turn or not. A gradient scaler is seen
    where it leaves it to ``step()`` to look at what it found: that is torch's ``fused=True``, and
    optimizers of this library on a GPU. It doesn't call that of others at all, so that such steps
    are neither written nor counted.

    It is two hooks of the optimizer, which do nothing but count between the steps that they write.
    In those, the parameters are copied once, and the numbers are waited for once a device. Sharded
    parameters take a message for each kind of sharding, so that every rank must log, at the same
    steps: give the others a function that does nothing.

    Args:
        writer: has ``add_scalar(tag, value, step)`` (TensorBoard), ``log_metrics(dict, step=)``
            (Comet, MLflow, Lightning's loggers) or ``log(dict, step=)`` (a run of Weights &
            Biases), or is a function of a dict and the step.
        optimizer: any of this library or torch's, wrappers included.
        every: steps from one that is written to the next (default 50); a step is written when its
            number is a multiple.
        prefix: of all tags (default ``"optimizer"``); "" for none.
        start: the number of steps taken so far; None (default) for the count that the optimizer's
            state has. Loading a state dict sets it anew.

    Groups are called by their ``"name"`` where they have one (:func:`steprule.param_groups` gives
    them some), by their index otherwise.

    Returns:
        The log. ``remove()`` ends it; ``step`` is the number of steps. That counts calls of
        ``step()``, skipped ones too; ``state_dict()`` keeps it for optimizers without a count in
        their state (SGD), or runs whose steps were skipped.

    Raises:
        TypeError: no writer or optimizer, or one whose steps can't be seen.
        ValueError: ``every`` below 1, ``start`` below 0.
    """
    return StepLog(writer, optimizer, every=every, prefix=prefix, start=start)


class StepLog:
    """What :func:`log_to` returns.

    Attributes:
        step: the number of steps so far.
        every: steps from one that is written to the next; may be set.
    """

    def __init__(
        self,
        writer: Writer,
        optimizer: torch.optim.Optimizer,
        *,
        every: int,
        prefix: str,
        start: int | None,
    ) -> None:
        self._write = write_to(writer)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
        stepping = that_step(optimizer)
        if len(stepping) != 1:
            raise TypeError(
                f"optimizer: the steps of {type(optimizer).__name__} can't be seen, which runs "
                f"{'no hooks' if not stepping else 'those of several'}: log those that it wraps"
            )
        self.every = checks.whole("every", every, low=1)
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be text, got {prefix!r}")
        self._prefix = prefix
        count = _count_of(stepping[0]) or 0
        self.step = count if start is None else checks.whole("start", start)
        self._is_counted = False
        # By parameter, for a closure may add a group.
        self._before: dict[int, Tensor] | None = None
        self._lrs: list[float | None] = []
        one = stepping[0]
        self._handles = [
            one.register_step_pre_hook(self._at_start),
            one.register_step_post_hook(self._at_end),
            one.register_load_state_dict_pre_hook(self._before_loading),
            one.register_load_state_dict_post_hook(self._when_loaded),
        ]

    def remove(self) -> None:
        """Take the hooks away; as often as you like."""
        for handle in self._handles:
            handle.remove()
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        return {"step": self.step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting from a saved number.

        Raises:
            TypeError, ValueError: it is none.
        """
        if not isinstance(state_dict, Mapping) or "step" not in state_dict:
            raise TypeError(f"state_dict must be what state_dict() returned, got {state_dict!r}")
        self.step = checks.whole("state_dict['step']", state_dict["step"])

    # -- hooks ----------------------------------------------------------------------------

    def _at_start(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._before = None
        if (self.step + 1) % self.every or _is_captured():
            return
        self._lrs = [_number(group.get("lr")) for group in optimizer.param_groups]
        with torch.no_grad():
            self._before = {id(p): p.detach().clone() for p in _params_of(optimizer)}

    def _at_end(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.step += 1
        before, self._before = self._before, None
        skipped = _was_skipped(optimizer, may_wait=before is not None)
        if before is not None:
            values = self._values(optimizer, before, skipped=bool(skipped))
            if skipped is not None:
                values[self._tag("skipped")] = float(skipped)
            self._write(values, self.step)
        elif skipped:
            self._write({self._tag("skipped"): 1.0}, self.step)

    def _before_loading(self, optimizer: Any, state_dict: Any) -> None:
        self._is_counted = _count_of(optimizer) is not None

    def _when_loaded(self, optimizer: Any) -> None:
        # Without a count now and with one before: it is the state of an optimizer that has not
        # stepped. Without one at any time: nobody knows.
        unknown = 0 if self._is_counted else self.step
        count = _count_of(optimizer)
        self.step = unknown if count is None else count

    # -- numbers --------------------------------------------------------------------------

    def _values(
        self, optimizer: Any, before: Mapping[int, Tensor], *, skipped: bool
    ) -> dict[str, float]:
        groups = optimizer.param_groups
        ends = [[(param, param) for param in group["params"]] for group in groups]
        starts: list[list[Any]] = []
        changes: list[list[Any]] = []
        with torch.no_grad():
            for group in groups:
                params = [param for param in group["params"] if id(param) in before]
                pairs = [(param, before[id(param)]) for param in params]
                starts.append(pairs)
                changes.append([(param, param.detach() - start) for param, start in pairs])
        weights = norms_of([*ends, *starts, *changes])
        count = len(groups)
        later = [_number(group.get("lr")) for group in groups[len(self._lrs) :]]
        found: dict[str, list[float | None]] = {
            "lr": [*self._lrs, *later][:count],
            "weight_norm": list(weights[:count]),
        }
        # Steps in the backward pass have changed what there was before this step began.
        if getattr(optimizer, "_backward_steps", None) is None:
            old, new = weights[count : 2 * count], weights[2 * count :]
            found["grad_norm"] = list(_grad_norms(optimizer))
            if not skipped:
                found["update_ratio"] = [
                    change / size if size > 0 else None
                    for change, size in zip(new, old, strict=True)
                ]
        values = {
            self._tag(what, label): number
            for what, numbers in found.items()
            for label, number in zip(_labels_of(groups), numbers, strict=True)
            if number is not None
        }
        if "grad_norm" in found and count > 1:
            every = [norm for norm in found["grad_norm"] if norm is not None]
            values[self._tag("grad_norm")] = math.hypot(*every)
        return values

    def _tag(self, *parts: str) -> str:
        return "/".join(part for part in (self._prefix, *parts) if part)


def _params_of(optimizer: Any) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _labels_of(groups: Any) -> list[str]:
    """Return what groups are called: nothing where there is one, else their names or indices."""
    if len(groups) == 1:
        return [""]
    names = [group.get("name") for group in groups]
    are_names = all(isinstance(name, str) and name for name in names)
    return names if are_names and len(set(names)) == len(names) else [*map(str, range(len(names)))]


def _number(lr: Any) -> float | None:
    return None if lr is None else float(lr)


def _grad_norms(optimizer: Any) -> list[float]:
    """Return the norm of each group's gradients, as guards saw it where one is on."""
    record = getattr(optimizer, "_record", None)
    if isinstance(record, StepRecord) and record.sums is not None:
        return list(record.as_seen().group_norms)
    groups = [[(p, p.grad) for p in group["params"]] for group in optimizer.param_groups]
    scale = getattr(optimizer, "grad_scale", None)
    # Ours divide by a scaler's scale as they read; torch's fused steps write what is divided.
    factor = 1.0 if scale is None or not isinstance(optimizer, Optimizer) else float(scale)
    return [norm / factor for norm in norms_of(groups)]


def _was_skipped(optimizer: Any, *, may_wait: bool) -> bool | None:
    """Tell whether a step was passed over; None if nobody asks, or knows without waiting."""
    record = getattr(optimizer, "_record", None)
    if isinstance(record, StepRecord) and record.sums is not None:
        skipped = record.skipped
        return bool(skipped) if may_wait or not isinstance(skipped, Tensor) else None
    found_inf = getattr(optimizer, "found_inf", None)
    return bool(found_inf) if may_wait and found_inf is not None else None


def _count_of(optimizer: Any) -> int | None:
    """Return how many steps an optimizer knows to have taken; None if it does not know."""
    entries = [entry for entry in optimizer.state.values() if isinstance(entry, Mapping)]
    counts = [int(entry["step"]) for entry in entries if "step" in entry]
    if any(STEP in group for group in optimizer.param_groups):
        counts.append(steps_seen(optimizer.param_groups))
    return max(counts, default=None)


def _is_captured() -> bool:
    """Tell whether what is done is being captured as a graph, where no number can be waited for."""
    is_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_in_use and torch.cuda.is_current_stream_capturing()
