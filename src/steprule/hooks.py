"""A step between its hooks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import optimizer as torch_optimizer

from steprule.scheduled import STEP, advance_schedules

if TYPE_CHECKING:
    from steprule.optimizer import Optimizer


def hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step within its hooks; under the profiler by torch's own wrapper, which records it too.

    A subclass's step may call the one it overrides: hooks then run once, around the outer one.
    """
    recorded = torch.optim.Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def outermost(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if self._is_stepping:
            return step(self, *args, **kwargs)
        self._is_stepping = True
        # With a rule, the update itself moves schedules on.
        groups = [(group, group.get(STEP)) for group in self.param_groups if self.rule is None]
        try:
            if torch._C._autograd._profiler_enabled():
                result = recorded(self, *args, **kwargs)
            else:
                result = _between_hooks(step, self, args, kwargs)
        finally:
            self._is_stepping = False
        # A wrapper's step may have been that of the optimizer within, whose groups it shares.
        advance_schedules(group for group, seen in groups if group.get(STEP) == seen)
        return result

    outermost.hooked = True  # type: ignore[attr-defined]  # torch's base class asks
    return outermost


def _between_hooks(
    step: Callable[..., Any], optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A step between its hooks; hooks are given the optimizer among the arguments, as by torch."""
    given = (optimizer, *args)
    everyones = torch_optimizer._global_optimizer_pre_hooks.values()
    for before in (*everyones, *optimizer._optimizer_step_pre_hooks.values()):
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
    everyones = torch_optimizer._global_optimizer_post_hooks.values()
    for after in (*optimizer._optimizer_step_post_hooks.values(), *everyones):
        after(optimizer, given, kwargs)
    return result
