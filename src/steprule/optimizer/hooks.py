"""A step between its hooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import optimizer as torch_optimizer

from steprule.optimizer.scheduled import advance_schedules, schedule_steps
from steprule.planning.scheduled_values import check_scheduled_values

#: The attribute by which a step of ours says that schedules are where they belong.
MOVED_ON = "_schedules_moved_on"

#: The attribute by which a step hook says that it looks at no tensor, so that it may run while a
#: graph does, which may have parameters and state elsewhere meanwhile.
RUNS_IN_GRAPHS = "runs_in_graphs"

#: The attributes in which torch's optimizers keep what is registered.
HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)

_F = TypeVar("_F", bound=Callable[..., Any])


def uncompiled(function: _F) -> _F:
    """Keep ``torch.compile`` out of a function; a compiled caller calls it as it stands."""
    return cast("_F", torch._disable_dynamo(function))  # type: ignore[attr-defined]


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a step in its hooks; under the profiler in torch's own wrapper, which records it too.

    A subclass's step may call the one it overrides: hooks then run once, around the outer one.
    """
    recorded = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def outermost(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Who derives from the class but never called __init__ has no hooks, as with torch's class.
        if getattr(self, "_is_stepping", True):
            return step(self, *args, **kwargs)
        _mark(self, is_stepping=True)
        self.__dict__.pop(MOVED_ON, None)
        seen = schedule_steps(self.param_groups)
        try:
            if seen and self.rule is None:  # else the plan looks, when it takes the numbers
                for index, group in enumerate(self.param_groups):
                    check_scheduled_values(None, group, index)
            if torch._C._autograd._profiler_enabled():
                result = recorded(self, *args, **kwargs)
            else:
                result = between_hooks(step, self, args, kwargs)
        finally:
            _mark(self, is_stepping=False)
        # A step of our own has moved them, or has been passed over; one of a subclass does neither.
        if self.__dict__.pop(MOVED_ON, None) is None:
            advance_schedules(self.param_groups, seen)
        return result

    outermost.hooked = True  # type: ignore[attr-defined]  # torch's base class asks
    return outermost


def run_in_graph(optimizer: Any) -> None:
    """Run the hooks after a step that is in a graph: those that may run there."""
    for after in optimizer._optimizer_step_post_hooks.values():
        after(optimizer, (optimizer,), {})


def _mark(optimizer: Any, *, is_stepping: bool) -> None:
    # torch 2.9 compiles nothing that sets an attribute of an optimizer.
    if torch.compiler.is_dynamo_compiling():
        _mark_uncompiled(optimizer, is_stepping)
    else:
        optimizer._is_stepping = is_stepping


@uncompiled
def _mark_uncompiled(optimizer: Any, is_stepping: bool) -> None:
    optimizer._is_stepping = is_stepping


def between_hooks(
    step: Callable[..., Any],
    optimizer: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    everyones: bool = True,
) -> Any:
    """Run a step between its hooks, which get the optimizer among the arguments, as by torch.

    Args:
        step: takes the optimizer and the arguments.
        optimizer: whose hooks.
        args: of its step.
        kwargs: likewise.
        everyones: whether to run the hooks of all optimizers, too.
    """
    given = (optimizer, *args)
    before_all = torch_optimizer._global_optimizer_pre_hooks.values() if everyones else ()
    for before in (*before_all, *optimizer._optimizer_step_pre_hooks.values()):
        changed = before(optimizer, given, kwargs)
        if changed is None:
            continue
        if not (isinstance(changed, tuple) and len(changed) == 2):
            raise RuntimeError(
                "a step pre-hook must return None or a tuple of (new_args, new_kwargs), "
                f"but got {changed!r}"
            )
        given, kwargs = changed
    result = step(*given, **kwargs)
    after_all = torch_optimizer._global_optimizer_post_hooks.values() if everyones else ()
    for after in (*optimizer._optimizer_step_post_hooks.values(), *after_all):
        after(optimizer, given, kwargs)
    return result
