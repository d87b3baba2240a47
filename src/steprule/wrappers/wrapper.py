"""What wrappers share: all that is the wrapped optimizer's, and what is saved beside it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from steprule.optimizer.hooks import between_hooks, uncompiled
from steprule.optimizer.saving import SavedOptimizer

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class Wrapper(torch.optim.Optimizer):
    """Base of optimizers round another one.

    Groups, state and defaults are the wrapped optimizer's own objects at any time, after loading as
    well, so that schedulers, scalers and clipping may be given either of the two. What is not found
    here is looked for there (``explain()``, ``state_bytes()``, ``train()``…). Hooks are the
    wrapper's own, and run once for each of its steps; those of all optimizers
    (``register_optimizer_step_pre_hook``) run with the wrapped one's step.

    Args:
        optimizer: the wrapped one.

    Attributes:
        optimizer: likewise.

    Raises:
        TypeError: it is none, or one that can't be wrapped.
    """

    #: The key under which a state dict has what is the wrapper's.
    key: ClassVar[str]
    optimizer: torch.optim.Optimizer

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        name = type(self).__name__
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(
                f"{name} goes round an optimizer, got {kind}: make that first, "
                f"{name}(AdamW(model.parameters(), lr=1e-3))"
            )
        inside = type(optimizer).__name__
        if any(type(one) is type(self) for one in layers(optimizer)):
            raise TypeError(f"{name}: {inside} has a {name} inside already")
        if getattr(optimizer, "_backward_steps", None) is not None:
            raise TypeError(
                f"{name}: {inside} steps in the backward pass (step_in_backward), where there is "
                "no moment before or after all parameters; step as usual"
            )
        self.optimizer = optimizer
        self._make_hooks()

    def _make_hooks(self) -> None:
        for name in _HOOKS:
            setattr(self, name, OrderedDict())

    # -- what is the wrapped optimizer's --------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimizer's groups."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimizer's state."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimizer's defaults."""
        return self.optimizer.defaults

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("optimizer")
        if inner is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the wrapped optimizer does."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    # -- steps ----------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Carry out a step of the wrapper's, within its hooks."""
        return _hooked_step(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch's base class need not wrap it

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Carry out the step itself."""
        raise NotImplementedError

    # -- saving and loading ---------------------------------------------------------------

    def _own_state(self) -> dict[str, Any]:
        """Return what is saved under the wrapper's key: numbers."""
        raise NotImplementedError

    def _check_own(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is to be set of what was saved under the wrapper's key, checked.

        Raises:
            TypeError, ValueError: a number that is none, or out of its range.
        """
        raise NotImplementedError

    def _refuse_if_moved(self, what: str) -> None:
        """Refuse what makes no sense while the parameters are elsewhere."""

    def _entries(self, packed: Mapping[Any, Any]) -> Mapping[Any, Any]:
        """Return the entries of a state dict with what the wrapper keeps for each parameter."""
        return packed

    def _take_entries(self) -> None:
        """Take what the wrapper keeps out of the state that the wrapped optimizer has loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, with a key more for what is the wrapper's.

        The wrapped optimizer alone can load it too.
        """
        self._refuse_if_moved("state_dict()")
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        packed = self.optimizer.state_dict()
        packed = {**packed, "state": self._entries(packed["state"]), self.key: self._own_state()}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            returned = post_hook(self, packed)
            packed = packed if returned is None else returned
        return packed

    def load_state_dict(self, state_dict: Mapping[str, Any], **how: Any) -> Any:
        """Take over a state dict of such a wrapper, or of the wrapped optimizer alone.

        Args:
            state_dict: what :meth:`state_dict` returned. Where it has nothing of the wrapper's, the
                wrapper begins anew with the arguments that it has.
            **how: ``strict``, ``keep`` and ``rename``, where the wrapped optimizer is one of ours.

        Returns:
            What the wrapped optimizer's ``load_state_dict`` does.

        Raises:
            TypeError, ValueError: as that; nothing is changed.
        """
        self._refuse_if_moved("load_state_dict()")
        given: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            returned = pre_hook(self, given)
            given = given if returned is None else returned
        own = given.get(self.key, {}) if isinstance(given, Mapping) else {}
        if not isinstance(own, Mapping):
            raise TypeError(f"state_dict[{self.key!r}] must be a dict, got {own!r:.80}")
        checked = self._check_own(own)
        report = self.optimizer.load_state_dict(given, **how)
        self.__dict__.update(checked)
        self._take_entries()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
        return report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the state to a file, as :meth:`steprule.Optimizer.save` does."""
        SavedOptimizer.save(self, path)  # type: ignore[arg-type]

    def load(self, path: str | os.PathLike[str], **how: Any) -> Any:
        """Load the state from a file, as :meth:`steprule.Optimizer.load` does."""
        return SavedOptimizer.load(self, path, **how)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_if_moved("a copy")
        return {key: value for key, value in self.__dict__.items() if key not in _HOOKS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_hooks()

    def __repr__(self) -> str:
        numbers = ", ".join(f"{key}={value}" for key, value in self._own_state().items())
        return f"{type(self).__name__}({numbers}) round {self.optimizer!r}"


def layers(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """Give an optimizer, what it is round, what that is round…"""
    yield optimizer
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.optimizer
        yield optimizer


def params_of(groups: list[dict[str, Any]]) -> list[Tensor]:
    """Return the parameters of groups, each once."""
    return list(dict.fromkeys(param for group in groups for param in group["params"]))


def _run(wrapper: Wrapper, closure: Callable[[], Any] | None = None) -> Any:
    return wrapper._step(closure)


# torch.compile would trace the lists of tensors, and again for each change of them.
@uncompiled
def _hooked_step(wrapper: Wrapper, closure: Callable[[], Any] | None) -> Any:
    given = () if closure is None else (closure,)
    return between_hooks(_run, wrapper, given, {}, everyones=False)
