"""A step as the compiler traces it: which tensors it reads and writes, and what is done with them.

The compiler traces :func:`compiled_step`, and guards whatever it looks at: the parameters, which of
them have a gradient, the arrays of the state, flags. It must not look at numbers, which would be
constants: a step reads them when it runs. What is planned is planned by :func:`_prepared`, which
the compiler calls instead of tracing it. Without a compiler all this is a plain step as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, _dynamo
from torch.optim import optimizer as torch_optimizer

from steprule.language.form import deciding_options
from steprule.optimizer.compiling import compiler, operations
from steprule.optimizer.compiling.prepared import (
    CannotCompileError,
    Place,
    prepare,
    prepared_step,
    starting_at_weights,
)
from steprule.optimizer.hooks import RUNS_IN_GRAPHS
from steprule.optimizer.saving import SavedOptimizer

_F = TypeVar("_F", bound=Callable[..., Any])
Tensors: TypeAlias = list[Tensor]
# Untyped in torch.
_by_backend: Callable[[_F], _F] = _dynamo.allow_in_graph
_while_compiling: Callable[[_F], _F] = _dynamo.assume_constant_result
graph_break: Callable[..., None] = _dynamo.graph_break


def compiled_step(
    optimizer: Any, closure: Callable[[], Any] | None, uncompiled: Callable[..., Any]
) -> Any:
    """Carry out an optimizer's step within the graph that is being traced, or break the graph.

    Args:
        optimizer: the optimizer, one with a rule.
        closure: as of its ``step``.
        uncompiled: its step as it is without a compiler, which the compiler calls and does not
            trace; takes the optimizer and a closure.

    Raises:
        RuntimeError: while compiling, where the gradients would be lost.
    """
    if compiler.UNKNOWN:
        graph_break(msg=f"steprule: {compiler.UNKNOWN}")
        return uncompiled(optimizer, closure)
    _check_gradients(optimizer)
    own = optimizer.__dict__
    reason = _why_not(own)
    if reason:
        graph_break(msg=f"steprule: {reason}")
        return uncompiled(optimizer, closure)
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    groups = own["param_groups"]
    places, params, grads = _with_gradients(groups)
    flags = _guarded_flags(optimizer, groups)
    planned = _prepared(optimizer, tuple(places), flags)
    arrays, reason = _arrays(own["state"], params), planned.reason
    if not reason and len(arrays) != planned.arrays:
        reason = "this function looked at the state before this step has made some"
    if reason:
        graph_break(msg=f"steprule: {reason}")
        uncompiled(optimizer, None)
        return loss
    numbers, handle = planned.numbers, planned.handle
    if planned.is_in_graph:
        operations.begin(numbers, handle)
        _updated(params, grads, arrays, numbers, handle)
    else:
        _stepped(numbers, [*params, *arrays], grads, handle)
    return loss


def before_zero_grad(optimizer: Any) -> None:
    """Break the graph where gradients that are cleared in it would not come again."""
    reason = "" if compiler.UNKNOWN else _why_gradients_are_lost(optimizer)
    if reason:
        graph_break(msg=f"steprule: {reason}")


def _with_gradients(groups: Sequence[dict[str, Any]]) -> tuple[list[Place], Tensors, Tensors]:
    """Return the places of parameters that have a gradient, these parameters, the gradients."""
    places, params, grads = [], [], []
    for i, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            grad = param.grad
            if grad is not None:
                places.append((i, position))
                params.append(param)
                grads.append(grad)
    return places, params, grads


def _arrays(state: dict[Tensor, dict[str, Tensor]], params: Tensors) -> Tensors:
    found: Tensors = []
    for param in params:
        if param in state:
            found += state[param].values()
    return found


def _why_not(own: dict[str, Any]) -> str:
    """Say why a step is left out of the graph, whatever the gradients; empty if it is not."""
    if (
        own["_optimizer_step_pre_hooks"]
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    ):
        return "hooks see what is there before and after a step"
    for hook in own["_optimizer_step_post_hooks"].values():
        if not getattr(hook, RUNS_IN_GRAPHS, False):
            return "hooks see what is there before and after a step"
    if own["_is_stepping"]:
        return "a subclass's step is under way"
    if own["_owners"] is not None:
        return "the state is divided among ranks"
    if own["_backward_steps"] is not None:
        return "parameters are updated in the backward pass"
    if "found_inf" in own:
        return "a gradient scaler may call the step off"
    for group in own["param_groups"]:
        if group.get("differentiable"):
            return "autograd is to go through the step"
    return ""


def _guarded_flags(optimizer: Any, groups: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """Return what decides which operations there are; the compiler guards it."""
    found: list[Any] = [optimizer.__dict__["engine"]]
    switches = _switches(optimizer)
    for group, keys in zip(groups, _keys_of_flags(optimizer), strict=True):
        # Within a comprehension the compiler looks at all numbers of the group.
        for key in keys:
            found.append(group.get(key))  # noqa: PERF401
        for key in switches:
            found.append(_kind_of_number(group.get(key)))  # noqa: PERF401
    return tuple(found)


def _kind_of_number(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Tensor):
        return "other"
    return "zero" if value == 0 else "not zero"


@_while_compiling
def _keys_of_flags(optimizer: Any) -> tuple[tuple[str, ...], ...]:
    """Return for each group the options that are no numbers now."""
    plain = (bool, str, type(None))
    return tuple(
        tuple(key for key, value in group.items() if type(value) in plain)
        for group in optimizer.param_groups
    )


@_while_compiling
def _switches(optimizer: Any) -> tuple[str, ...]:
    """Return the options that decide, by being 0 or None, what is computed."""
    try:
        context = optimizer._context()
    except Exception:  # noqa: BLE001  # the step itself says what is wrong
        return ()
    found: set[str] = set()
    for kind in (context.kind, *context.kinds.values()):
        found |= deciding_options(kind.rule)
        found.update(key for key, value in kind.extras.items() if value is None)
    return tuple(sorted(found))


@dataclass(frozen=True)
class _Planned:
    """A prepared step, as the compiler sees it, which keeps it for good; or why there is none."""

    handle: int = 0
    arrays: int = 0
    is_in_graph: bool = False
    numbers: Any = None
    reason: str = ""


@_while_compiling
def _prepared(optimizer: Any, places: tuple[Any, ...], _flags: tuple[Any, ...]) -> _Planned:
    """Prepare a step, or say why it is left out of the graph.

    Flags are among the arguments for the compiler to guard them, which takes these for constants.
    """
    compiler.forget_where_constants_were()  # gradients have been asked for since
    try:
        if compiler.has_changes_to_come(optimizer.param_groups):
            reason = "the function changes a group's options, which a graph would do after the step"
            return _Planned(reason=reason)
        options = (value for group in optimizer.param_groups for value in group.values())
        if compiler.has_tensors_to_come(x for x in options if isinstance(x, Tensor)):
            return _Planned(reason="the function changes an option that is a tensor")
        if compiler.has_tensors_to_come(starting_at_weights(optimizer, places)):
            return _Planned(
                reason="the function changes weights before the first step, which makes state of "
                "them: take a plain step first"
            )
        step = prepare(optimizer, places)
    except CannotCompileError as error:
        return _Planned(reason=str(error))
    except Exception as error:  # noqa: BLE001  # a plain step raises it as it is
        return _Planned(reason=f"{type(error).__name__}: {error}")
    return _Planned(step.handle, step.arrays, step.is_in_graph, step.numbers)


@_while_compiling
def _why_gradients_are_lost(optimizer: Any) -> str:
    """Mend the compiler for this optimizer; say why gradients would be lost all the same."""
    compiler.forget_where_constants_were()
    return compiler.mend(optimizer.param_groups, SavedOptimizer)


@_while_compiling
def _check_gradients(optimizer: Any) -> bool:
    """Mend the compiler; refuse where gradients are lost by now, so that a break is too late."""
    reason = _why_gradients_are_lost(optimizer)
    if reason:
        raise RuntimeError(f"steprule: {reason}")
    return True


@_by_backend
def _updated(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    arrays: Sequence[Tensor],
    numbers: Tensor,
    handle: int,
) -> Tensor:
    """Update parameters and state by the rule's operations; the compiler's backend traces it."""
    with torch.no_grad():
        prepared_step(handle).update(params, grads, arrays, numbers)
    return numbers.clone()  # a graph's call returns a tensor


@_by_backend
def _stepped(
    numbers: Tensor, written: Sequence[Tensor], grads: Sequence[Tensor], handle: int
) -> Tensor:
    """Update parameters and state by one operation.

    Without no_grad, AOTAutograd mixes up what a graph returns where parameters require gradients
    that the graph writes, too.
    """
    with torch.no_grad():
        operations.step(numbers, written, grads, handle)
    return numbers.clone()
