"""Did the optimizer step? Known from a step hook, so that `optimizer.step` is left alone."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

from steprule.optimizer.held import held_by
from steprule.optimizer.hooks import RUNS_IN_GRAPHS, uncompiled

_F = TypeVar("_F", bound=Callable[..., Any])

HOW_TO = (
    "See more details at https://pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate"
)

# torch's own sentences first, to the letter: people filter warnings by them.
WRONG_ORDER = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. "
    "In PyTorch 1.1.0 and later, you should call them in the opposite order: "
    "`optimizer.step()` before `lr_scheduler.step()`.  Failure to do this "
    "will result in PyTorch skipping the first value of the learning rate schedule. "
    f"{HOW_TO}\nIf your loop is written for the old order, import the schedulers from "
    "`steprule.lr_scheduler.scheduler_first`, where the first scheduler.step() opens epoch 0."
)
OVERRIDDEN = (
    "Seems like `optimizer.step()` has been overridden after learning rate scheduler "
    "initialization. Please, make sure to call `optimizer.step()` before "
    f"`lr_scheduler.step()`. {HOW_TO}"
)


def out_of_graphs(step: _F) -> _F:
    """Have ``torch.compile`` leave a scheduler's step out of its graphs.

    torch's own decorator for this loads the compiler, which takes seconds, at the first call.
    """

    @functools.wraps(step)
    def stepping(self: Any, *args: Any, **kwargs: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            out_of_graph(step, self, *args, **kwargs)
        else:
            step(self, *args, **kwargs)

    return cast("_F", stepping)


@uncompiled
def out_of_graph(step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call a step that the compiler does not trace; its message gives this name."""
    step(*args, **kwargs)


def _count(optimizer: Optimizer, *_: Any) -> None:
    """Step hook. It holds no reference, so it keeps nothing alive and can be pickled."""
    state: Any = optimizer
    state._opt_called = True  # the name torch's schedulers look for
    # Only when asked: on a GPU the answer makes the host wait, and a counter that moves makes a
    # compiled step compile again.
    if getattr(optimizer, "_counts_steps", False) and not _skipped(optimizer):
        state._steps_taken = getattr(optimizer, "_steps_taken", 0) + 1


setattr(_count, RUNS_IN_GRAPHS, True)


def _skipped(optimizer: Optimizer) -> bool:
    """Tell whether a GradScaler told a fused step to leave the parameters as they were."""
    found_inf = getattr(optimizer, "found_inf", None)
    return bool(getattr(optimizer, "last_step_skipped", False)) or (
        found_inf is not None and bool(found_inf)
    )


def that_step(optimizer: Any) -> list[Any]:
    """Return the optimizers whose step hooks run when this one steps.

    That is the optimizer itself, except where it is a wrapper that never ran
    `Optimizer.__init__`: its class's step then runs no hooks, whatever dict of hooks it may have,
    and those of the optimizers it holds do. Empty where nothing of the kind can be found.
    """
    if _runs_hooks(optimizer):
        return [optimizer]
    found: list[Any] = []
    seen = {id(optimizer)}
    inside = held_by(optimizer)
    while inside:
        thing = inside.pop()
        if id(thing) not in seen:
            seen.add(id(thing))
            if _runs_hooks(thing):
                found.append(thing)
            else:
                inside += held_by(thing)
    return found


def _runs_hooks(optimizer: Any) -> bool:
    own = getattr(optimizer, "__dict__", {})
    step = getattr(type(optimizer), "step", None)
    return "_optimizer_step_post_hooks" in own and bool(getattr(step, "hooked", False))


def watch(optimizer: Optimizer, *, count: bool) -> None:
    """Note this optimizer's steps from now on; one hook serves all its schedulers.

    Args:
        optimizer: whose steps.
        count: whether to count them as well, for `steps_taken`.
    """
    for stepping in that_step(optimizer):
        hooks = stepping._optimizer_step_post_hooks
        if _count not in hooks.values():
            try:
                stepping.register_step_post_hook(_count)
            except TypeError:  # a plain dict cannot give a handle, which nobody needs here
                hooks[-1] = _count
        if count:
            stepping._counts_steps = True


def steps_taken(optimizer: Optimizer) -> int | None:
    """Count steps so far, without those skipped by a GradScaler; None where none is seen."""
    stepping = that_step(optimizer)
    if not stepping:
        return None
    return sum(getattr(one, "_steps_taken", 0) for one in stepping)


def own_step(optimizer: Optimizer) -> Any:
    """Return what somebody put in place of this optimizer's step, if anybody did."""
    step = getattr(optimizer, "__dict__", {}).get("step")
    return None if step is None or _leads_to_the_step(step, optimizer) else step


def _leads_to_the_step(step: Any, optimizer: Optimizer) -> bool:
    """Tell whether `step` is the class's, or says by its attributes that it wraps it.

    `functools.wraps` copies the attributes of what it wraps, which is what torch goes by.
    """
    func = getattr(step, "__func__", step)
    return (
        func is getattr(type(optimizer), "step", None)
        or hasattr(step, "_wrapped_by_lr_sched")
        or bool(getattr(step, "hooked", False))
    )


def what_steps(optimizer: Optimizer) -> tuple[Any, int]:
    """Return what `warn_if_never_stepped` compares: own step, and the parameters' versions."""
    own = own_step(optimizer)
    return own, 0 if own is None else _versions(optimizer)


def _versions(optimizer: Optimizer) -> int:
    """Return a number that grows each time a parameter is changed in place."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return sum(param._version for param in params if not param.is_inference())


def warn_if_never_stepped(optimizer: Optimizer, found: tuple[Any, int], stacklevel: int) -> None:
    """Warn, when a scheduler's first step comes before any step of its optimizer.

    As in torch, it also warns when `optimizer.step` was replaced since the scheduler was built,
    by something that does not say it wraps the step. Silent where the order cannot be known: no
    optimizer with hooks can be found, or the gradients hold inf or nan, which is what makes a
    GradScaler skip the step.

    Args:
        optimizer: the scheduler's.
        found: what `what_steps` gave when the scheduler was built.
        stacklevel: of the warning.
    """
    step, versions = found
    own = own_step(optimizer)
    message = WRONG_ORDER
    if own is not None and own is not step:
        message = OVERRIDDEN
    else:
        stepping = that_step(optimizer)
        if not stepping or any(getattr(one, "_opt_called", False) for one in stepping):
            return
        if own is not None and _versions(optimizer) != versions:
            return  # what stands in place of the step does not go through its hooks
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and not bool(torch.isfinite(_values(param.grad)).all()):
                return
    warnings.warn(message, UserWarning, stacklevel=stacklevel + 1)


def _values(grad: torch.Tensor) -> torch.Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad
