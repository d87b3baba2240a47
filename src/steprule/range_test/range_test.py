"""``lr_range_test``: which learning rates train a model, found by a sweep over many."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from steprule.range_test.result import LRRangeTest
from steprule.range_test.sweep import Loss, Sweep
from steprule.schedules import checks


def lr_range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: nn.Module | Callable[[nn.Module, Any], Tensor],
    data: Iterable[Any],
    *,
    lr_min: float = 1e-7,
    lr_max: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.05,
    diverged_at: float = 4.0,
) -> LRRangeTest:
    """Train a while at a rising learning rate, and say at which one the loss falls fastest.

    ::

        lr of step k = lr_min * (lr_max / lr_min) ** (k / (steps - 1))

    The steps are undone: model and criterion (parameters, buffers, gradients, training modes),
    optimizer (state, groups, schedules) and random generators are left bit for bit as they were,
    also where an exception or Ctrl-C ends the sweep. Parameters and state are there twice
    meanwhile. What is hung on the optimizer's steps by ``register_step_pre_hook`` and
    ``register_step_post_hook`` is not called in the sweep, for it may change more than that.

    Args:
        model: what is trained; in the mode that it is in, or in training mode if it is in none.
        optimizer: any of this library or torch's, LBFGS and SAM included, over the model's
            parameters. Where groups have different lrs, they keep their proportions: the lr of the
            sweep is the largest. Schedulers are not stepped.
        loss_fn: called as ``loss_fn(model, batch)``, returns the loss of a batch; or a criterion, a
            module as ``nn.CrossEntropyLoss()`` or a function of ``torch.nn.functional`` (in a
            ``functools.partial`` or not), called as ``loss_fn(model(x), y)`` for batches
            ``(x, y)``. Of modules that a function of yours calls beside the model nothing is known.
        data: batches, gone through again and again; an iterator's end is the sweep's.
        lr_min: first lr (default 1e-7).
        lr_max: last lr (default 10).
        steps: of the sweep, one batch each, at least 2 (default 100).
        smoothing: how much of the sweep, on each side, the smoothed loss is a mean of, in
            [0, 0.5) (default 0.05).
        diverged_at: the sweep ends when three losses running are above
            ``lowest + (diverged_at - 1) * max(|lowest|, first - lowest)``, that is above so many
            times the lowest where that is no lower than half of the first; > 1 (default 4). It ends
            at a loss that is not finite, too.

    Returns:
        The losses and ``suggestion``, the lr at which the smoothed loss falls fastest on its way
        to its lowest, with its ``reason``; None if it never fell by more than it scatters, or was
        still falling where data ended, the sweep was interrupted, or after a hundredth at
        ``lr_max``.
        ``plot()`` draws it. A schedule that warms up may peak at the suggestion; take less, say a
        third, for long training at a constant lr.

    Raises:
        TypeError: no model, optimizer, function or batches; a loss that is no one tensor element.
        ValueError: a number out of its range, no batches, an optimizer that has nothing of the
            model, or nothing that takes a gradient; a loss that depends on no parameter; a group
            without an lr.
        KeyboardInterrupt: as it came, when all is back; its attribute ``result`` has what was
            found until then.

    Source: Smith, "Cyclical learning rates for training neural networks", 2015, section 3.3, with
    exponential steps and the point of steepest descent as in fastai.
    """
    sweep = checked_sweep(
        model,
        optimizer,
        loss_fn,
        data,
        lr_min=lr_min,
        lr_max=lr_max,
        steps=steps,
        smoothing=smoothing,
        diverged_at=diverged_at,
    )
    try:
        sweep.run()
    except KeyboardInterrupt as error:
        error.result = sweep.result()  # type: ignore[attr-defined]
        raise
    if not sweep.losses and sweep.stopped.startswith("data"):
        raise ValueError("data has no batches: is it an iterator that was used up before?")
    return sweep.result()


def checked_sweep(
    model: Any,
    optimizer: Any,
    loss_fn: Any,
    data: Any,
    *,
    lr_min: Any,
    lr_max: Any,
    steps: Any,
    smoothing: Any,
    diverged_at: Any,
) -> Sweep:
    """Return a sweep that can be run.

    Raises:
        TypeError, ValueError: as :func:`lr_range_test`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be an optimizer, got {type(optimizer).__name__}")
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function of model and batch, or a module, got {loss_fn!r}"
        )
    is_batch = isinstance(data, tuple) and data and all(isinstance(part, Tensor) for part in data)
    no_batches = (Tensor, str, bytes, dict)
    if is_batch or not isinstance(data, Iterable) or isinstance(data, no_batches):
        kind = "a tuple of tensors" if is_batch else type(data).__name__
        raise TypeError(
            f"data must be batches, a list or a DataLoader, got {kind}: put a single batch in a "
            "list, [batch]"
        )
    low = checks.number("lr_min", lr_min, above=0)
    high = checks.number("lr_max", lr_max)
    if high <= low:
        raise ValueError(f"lr_max must be above lr_min = {low:g}, got {lr_max!r}")
    share = checks.number("smoothing", smoothing, low=0)
    if share >= 0.5:
        raise ValueError(f"smoothing is a share of the sweep below 0.5, got {smoothing!r}")
    loss, criterion = _loss_of(loss_fn)
    _check_same_params(model, optimizer)
    return Sweep(
        model,
        optimizer,
        loss,
        data,
        low,
        high,
        checks.whole("steps", steps, low=2),
        share,
        checks.number("diverged_at", diverged_at, above=1),
        criterion,
    )


def _loss_of(loss_fn: Any) -> tuple[Loss, nn.Module | None]:
    """Return what is called with model and batch, and the module that it is of, if it is of one.

    Raises:
        TypeError: a function of torch's that is no criterion.
    """
    inner = loss_fn
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, nn.Module):
        return _as_criterion(loss_fn, inner), inner
    if not any(inner is known for known in vars(nn.functional).values()):
        return loss_fn, None
    if not _takes_a_target(inner):
        raise TypeError(
            f"loss_fn is torch.nn.functional.{inner.__name__}, which compares no output with a "
            "target: pass a function of model and batch"
        )
    return _as_criterion(loss_fn, inner), None


def _takes_a_target(function: Any) -> bool:
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:  # written in C++
        return False
    return names[1:2] == ["target"]


def _as_criterion(criterion: Any, inner: Any) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            name = getattr(inner, "__name__", type(inner).__name__)
            raise TypeError(
                f"loss_fn is the criterion {name}, for batches (x, y), and a batch is "
                f"{type(batch).__name__}: pass a function of model and batch"
            )
        value: Tensor = criterion(model(batch[0]), batch[1])
        return value

    return loss


def _check_same_params(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that has nothing of the model: of a copy, or of one that was moved."""
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if not any(id(param) in held for param in model.parameters()):
        raise ValueError(
            "optimizer has no parameter of this model: was the model copied or moved after the "
            "optimizer was made?"
        )
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            "model: no parameter that the optimizer has takes a gradient, all are frozen: "
            "requires_grad_() those that are to be trained"
        )
