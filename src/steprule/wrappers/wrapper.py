"""What wrappers share: all that is the wrapped optimizer's, and what is saved beside it."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar, cast, overload

import torch
from torch import Tensor

from steprule.optimizer.base import Optimizer
from steprule.optimizer.hooks import HOOKS, between_hooks, uncompiled
from steprule.optimizer.saving import SavedOptimizer

_Loss = TypeVar("_Loss")


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
        ValueError: one of its groups has ``differentiable=True``; then a step raises this, too.
    """

    #: The key under which a state dict has what is the wrapper's.
    key: ClassVar[str]
    #: The attributes that copies have, beside the wrapped optimizer.
    attributes: ClassVar[tuple[str, ...]]
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
        self._check_differentiable()
        self._make_hooks()

    def _make_hooks(self) -> None:
        for name in HOOKS:
            setattr(self, name, OrderedDict())

    def _check_differentiable(self) -> None:
        """Refuse steps that autograd is to see: it would not see the wrapper's moves.

        Raises:
            ValueError: a group asks for it.
        """
        if any(group.get("differentiable") for group in self.param_groups):
            name = type(self).__name__
            raise ValueError(
                f"{name}: differentiable=True lets autograd through the step of "
                f"{type(self.optimizer).__name__}, but not through what {name} does to the "
                "parameters: gradients would be wrong. Leave one of the two out"
            )

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
        inner, mine = self.__dict__.get("optimizer"), type(self).__name__
        if inner is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{mine!r} object has no attribute {name!r}")
        if not hasattr(inner, name):
            is_ours = hasattr(Optimizer, name) or name in ("engine", "train", "eval")
            raise AttributeError(
                f"{mine} has no attribute {name!r}, nor has {_innermost(self)}, round which it goes"
                f"{': some of the optimizers of steprule have it, wrap such a one' * is_ours}"
            )
        return getattr(inner, name)

    @property
    def engine(self) -> str:
        """The wrapped optimizer's engine; may be set."""
        return cast(str, self.optimizer.engine)  # type: ignore[attr-defined]

    @engine.setter
    def engine(self, value: str) -> None:
        if not hasattr(self.optimizer, "engine"):  # the message is that of asking for it
            self.__getattr__("engine")
        self.optimizer.engine = value  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the wrapped optimizer does."""
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimizer."""
        self.optimizer.add_param_group(param_group)

    # -- steps ----------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Carry out a step of the wrapper's, within its hooks.

        Args:
            closure: clears the gradients, computes the loss and its gradients, returns the loss.

        Returns:
            What the closure returned (the first time); None without one.

        Raises:
            TypeError: the closure is no function.
        """
        if closure is not None and not callable(closure):
            raise TypeError(
                f"{type(self).__name__}.step: closure must be a function or None, got "
                f"{closure!r:.80}"
            )
        return _hooked_step(self, closure)

    step.hooked = True  # type: ignore[attr-defined]  # torch's base class need not wrap it

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Carry out the step itself."""
        raise NotImplementedError

    # -- saving and loading ---------------------------------------------------------------

    def _numbers(self) -> dict[str, Any]:
        """Return the wrapper's arguments."""
        raise NotImplementedError

    def _own_state(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is saved under the wrapper's key.

        Args:
            groups: those of the state dict, in which parameters are their keys.
        """
        return self._numbers()

    def _loaded(
        self, own: Mapping[str, Any], state_dict: Mapping[str, Any], **how: Any
    ) -> dict[str, Any]:
        """Return the attributes to be set of what was saved under the wrapper's key, checked.

        Args:
            own: that; nothing where the state dict is one of the wrapped optimizer alone.
            state_dict: all of it.
            **how: as of :meth:`load_state_dict`.

        Raises:
            TypeError, ValueError: a number that is none, or out of its range, or what is no part of
                it.
        """
        raise NotImplementedError

    def _itself(self) -> Any:
        """Return the wrapper, where it may be called through an object that takes its class and
        holds it as ``optimizer`` (Lightning's): what were set there would not be set here.
        """
        return self if "optimizer" in self.__dict__ else self.optimizer

    def _refuse_if_moved(self, what: str) -> None:
        """Refuse what makes no sense while the parameters are elsewhere."""

    @property
    def _is_round_ours(self) -> bool:
        """Whether the optimizer within all wrappers is one of this library."""
        return isinstance([*layers(self)][-1], SavedOptimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the wrapped optimizer's state dict, with a key more for what is the wrapper's.

        The wrapped optimizer alone can load it, too, which leaves that key.
        """
        self._refuse_if_moved("state_dict()")
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        packed = self.optimizer.state_dict()
        packed = {**packed, self.key: self._own_state(packed["param_groups"])}
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
        if self._itself() is not self:
            return self._itself().load_state_dict(state_dict, **how)
        self._refuse_if_moved("load_state_dict()")
        given: Any = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            returned = pre_hook(self, given)
            given = given if returned is None else returned
        if how and not self._is_round_ours:
            name = type(self).__name__
            raise TypeError(
                f"{name}.load_state_dict: {', '.join(how)}: only optimizers of steprule know that, "
                f"{name} goes round {_innermost(self)}, which is none of these. Leave it out, or "
                "wrap one of steprule's"
            )
        own = given.get(self.key, {}) if isinstance(given, Mapping) else {}
        if not isinstance(own, Mapping):
            raise TypeError(f"state_dict[{self.key!r}] must be a dict, got {own!r:.80}")
        loaded = self._loaded(own, given, **how)
        if isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key != self.key}
        report = self.optimizer.load_state_dict(given, **how)
        self.__dict__.update(loaded)
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
        # Hooks, and what schedulers and scalers put here, belong to this object.
        return {name: self.__dict__[name] for name in ("optimizer", *self.attributes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_hooks()

    def __repr__(self) -> str:
        numbers = ", ".join(f"{key}={value}" for key, value in self._numbers().items())
        return f"{type(self).__name__}({numbers}) round {self.optimizer!r}"


def layers(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """Give an optimizer, what it is round, what that is round…"""
    yield optimizer
    while isinstance(optimizer, Wrapper):
        optimizer = optimizer.optimizer
        yield optimizer


def _innermost(optimizer: torch.optim.Optimizer) -> str:
    return type([*layers(optimizer)][-1]).__name__


def params_of(groups: list[dict[str, Any]]) -> list[Tensor]:
    """Return the parameters of groups, each once."""
    return list(dict.fromkeys(param for group in groups for param in group["params"]))


def check_keys(key: str, own: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse what a wrapper does not save under its key.

    Raises:
        ValueError: naming it.
    """
    unknown = [name for name in own if name not in known]
    if unknown:
        raise ValueError(
            f"state_dict[{key!r}] has {', '.join(map(repr, unknown))}, which is nothing of a "
            f"{key!r}: it has {', '.join(map(repr, known))}"
        )


def _run(wrapper: Wrapper, closure: Callable[[], Any] | None = None) -> Any:
    wrapper._check_differentiable()
    return wrapper._step(closure)


# torch.compile would trace the lists of tensors, and again for each change of them.
@uncompiled
def _hooked_step(wrapper: Wrapper, closure: Callable[[], Any] | None) -> Any:
    given = () if closure is None else (closure,)
    return between_hooks(_run, wrapper, given, {}, everyones=False)
