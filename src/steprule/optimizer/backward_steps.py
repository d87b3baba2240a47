"""Steps within the backward pass: each parameter is updated as soon as its gradient is there."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from steprule.engines.uninterrupted import uninterrupted
from steprule.language.form import form_of
from steprule.optimizer.averaging import STEP_AMONG_AVERAGES
from steprule.optimizer.base import Optimizer
from steprule.optimizer.train_eval import check_in_train_mode
from steprule.planning.assignment import NO_ENGINE, NO_GRADIENT, Assignment
from steprule.planning.lagged_norms import LaggedNorms
from steprule.planning.plan import Plan
from steprule.planning.settings import Context, Kind, Place
from steprule.planning.step_record import StepRecord

# Wrappers that average gradients among processes, by the names of their classes.
_AVERAGING = ("DistributedDataParallel", "FullyShardedDataParallel")


def step_in_backward(
    model: nn.Module, make_optimizer: Callable[[Iterator[nn.Parameter]], Optimizer]
) -> Optimizer:
    """Make an optimizer that updates each parameter in the backward pass, and frees its gradient.

    So there are never more gradients than a few: for large models the memory of one copy of the
    weights less. Everything else is as with the optimizer that ``make_optimizer`` returns, which
    is returned: state dicts, ``param_groups`` and schedules are its own, and ``step()`` is still
    called once an iteration. It has nothing left to update, runs hooks and moves schedules on.

    Gradients that are accumulated over several backward passes are kept inside
    :func:`accumulating`, and released in the pass outside it.

    Clipping: ``clip_grad_norm`` over each ``"param"`` as always; over ``"group"`` or ``"all"`` by
    the norm of the *step before* that was finite, since this step's is known when all is done
    (nothing is clipped at the first step). It is kept in the group, and saved with it.
    ``last_step`` has the norm of the last backward pass.

    Not with GradScaler: gradients are used as they are, scaled.

    Args:
        model: the module whose ``parameters()`` are handed on.
        make_optimizer: makes the optimizer of them: a class of ours, or a function.

    Raises:
        TypeError: ``model`` is no module, or averages its gradients after the backward pass
            (``DistributedDataParallel``); or the optimizer is not one of ours, or needs a closure.
        ValueError: an option that must see all gradients at once, named.

    Example:
        >>> import torch, steprule
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = steprule.step_in_backward(model, lambda p: steprule.AdamW(p, lr=1e-3))
        >>> model(torch.ones(2, 4)).sum().backward()
        >>> model.weight.grad is None, optimizer.state[model.weight]["step"].item()
        (True, 1.0)
        >>> optimizer.step()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"step_in_backward: model must be a torch.nn.Module, got {_kind(model)}")
    if not callable(make_optimizer):
        raise TypeError(
            "step_in_backward: make_optimizer must be a class or a function that makes an "
            f"optimizer of parameters, got {_kind(make_optimizer)}: lambda p: AdamW(p, lr=1e-3)"
        )
    kinds = {cls.__name__ for module in model.modules() for cls in type(module).__mro__}
    for name in _AVERAGING:
        if name in kinds:
            raise TypeError(
                f"step_in_backward: {name} averages gradients after they are there; step as usual"
            )
    optimizer = make_optimizer(model.parameters())
    if not isinstance(optimizer, Optimizer) or optimizer.needs_closure:
        raise TypeError(
            "step_in_backward needs an optimizer of steprule that takes a step without a closure, "
            f"got {type(optimizer).__name__}"
        )
    if optimizer._owners is not None:
        raise TypeError(
            "step_in_backward: the optimizer's state is divided among ranks (shard_state), which "
            "would wait for each other's parameters in the backward pass; step as usual"
        )
    optimizer._backward_steps = BackwardSteps(optimizer._context())
    return optimizer


def _kind(thing: object) -> str:
    return f"{type(thing).__name__} {thing!r}" if thing is None else type(thing).__name__


@contextlib.contextmanager
def accumulating(optimizer: Optimizer) -> Iterator[None]:
    """Keep gradients in the backward passes inside, to be added to; nothing is updated.

    Args:
        optimizer: what :func:`step_in_backward` returned.

    Raises:
        ValueError: the optimizer was not made by :func:`step_in_backward`.
        TypeError: it is none of steprule's.

    Example:
        >>> import torch, steprule
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = steprule.step_in_backward(model, steprule.SGD)
        >>> with steprule.accumulating(optimizer):
        ...     model(torch.ones(2, 4)).sum().backward()
        >>> model(torch.ones(2, 4)).sum().backward()  # the last one
        >>> optimizer.step()
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"accumulating() needs an optimizer of steprule, got {_kind(optimizer)}")
    steps = optimizer._backward_steps
    if steps is None:
        raise ValueError(
            "accumulating() is for optimizers that step in the backward pass (step_in_backward); "
            "others add gradients up until step()"
        )
    before, steps.is_accumulating = steps.is_accumulating, True
    try:
        yield
    finally:
        steps.is_accumulating = before


@dataclass
class _Single:
    """One parameter as a group of its own, and the plan of its steps."""

    own: dict[str, Any] = field(default_factory=dict)
    state: dict[Tensor, Any] = field(default_factory=lambda: defaultdict(dict))
    plan: Plan | None = None
    place: Place | None = None


class BackwardSteps:
    """Hooks on an optimizer's parameters that update them one by one.

    Args:
        context: the optimizer's parts: not the optimizer, which holds this.

    Raises:
        ValueError: an option of a group that must see all gradients at once.
    """

    def __init__(self, context: Context) -> None:
        self.is_accumulating = False
        self.is_averaged = False
        self._context = context
        self._norms = LaggedNorms(context.groups, context.record)
        self._singles: dict[Tensor, _Single] = {}
        self._handles: list[Any] = []
        self._has_warned = False
        for i in range(len(context.groups)):
            self.check(i)
        for i in range(len(context.groups)):
            self.attach(i)

    def check(self, group: int) -> None:
        """Refuse a group with an option that must see all gradients at once.

        Raises:
            ValueError: naming it.
        """
        options = self._context.groups[group]
        check_steps_in_backward(self._context.kind_of(options), options, f"group {group}: ")

    def attach(self, group: int) -> None:
        """Put hooks on a group's parameters, once it is checked."""
        me = weakref.ref(self)

        def update(param: Tensor) -> None:
            steps = me()
            if steps is not None:
                steps.step_one(param)

        for position, param in enumerate(self._context.groups[group]["params"]):
            self._singles[param] = _Single(place=Place(self._context.groups, group, position))
            if param.requires_grad:
                self._handles.append(param.register_post_accumulate_grad_hook(update))

    def __del__(self) -> None:
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        """Let go of plans and of what they know of the state."""
        for param, single in self._singles.items():
            self._singles[param] = _Single(place=single.place)

    def step_one(self, param: Tensor) -> None:
        """Update a parameter by the gradient that it has got, and free that."""
        if self.is_accumulating or param.grad is None:
            return
        if self.is_averaged:
            raise RuntimeError(STEP_AMONG_AVERAGES)
        single = self._singles[param]
        place = self._place_now(single, param)
        if place is None:  # it is in no group any more
            return
        check_in_train_mode(place.groups[place.group], f"group {place.group}: ")
        if param.grad.requires_grad:
            raise RuntimeError(
                "step_in_backward frees gradients in the backward pass, which create_graph=True "
                f"keeps: {place.label}"
            )
        self._follow(single, place.groups[place.group], param)
        # A gradient that is used is gone: else step() would use it again.
        with uninterrupted, torch.no_grad():
            self._run(single, place)
            if param in single.state:
                self._context.state[param] = single.state[param]
            param.grad = None

    def _place_now(self, single: _Single, param: Tensor) -> Place | None:
        """Return where a parameter stands now: groups may have been changed."""
        groups, known = self._context.groups, single.place
        if known is not None and known.group < len(groups):
            params = groups[known.group]["params"]
            if known.position < len(params) and params[known.position] is param:
                return known
        single.plan = None
        places = (
            Place(groups, i, position)
            for i, group in enumerate(groups)
            for position, other in enumerate(group["params"])
            if other is param
        )
        single.place = next(places, None)
        return single.place

    def _follow(self, single: _Single, group: Mapping[str, Any], param: Tensor) -> None:
        """Let the parameter's own group and state be as those of the whole are now."""
        own = {key: value for key, value in group.items() if key != "params"}
        if single.own.keys() != own.keys() | {"params"}:
            single.own.clear()
        single.own.update(own)
        single.own.setdefault("params", [param])
        state = self._context.state
        if param in state:
            single.state[param] = state[param]
        else:
            single.state.pop(param, None)

    def _run(self, single: _Single, place: Place) -> None:
        plan = single.plan
        if single.own.get("on_nonfinite", "propagate") != "propagate":  # set since
            plan = None
        try:
            if plan is not None and plan.step_whole() is not None:
                return
            if plan is not None and plan.collect():
                plan.run()
                return
            single.plan = plan = None
            self.check(place.group)
            plan = single.plan = Plan(self._context_of(single), for_step=True)
            self._say_what_fell_back(plan, place)
            plan.run_admitted()
        except BaseException:
            if plan is not None:
                plan.let_go()
            raise

    def _say_what_fell_back(self, plan: Plan, place: Place) -> None:
        """Warn, once, that an engine asked for by name does not take a parameter."""
        for fallen in () if self._has_warned else plan.fallen_back():
            self._has_warned = True
            warnings.warn(
                f"{place.label} runs on engine {fallen.engine!r}: {fallen.reason}. "
                "optimizer.explain() shows all",
                stacklevel=5,
            )

    def _context_of(self, single: _Single) -> Context:
        """Return the context of one parameter, in which it is the only one."""
        return replace(
            self._context,
            groups=[single.own],
            state=single.state,
            record=StepRecord(),
            origin=single.place,
            norms=self._norms,
        )

    def assignments(self) -> list[Assignment]:
        """Return who updates what."""
        found = []
        for i, group in enumerate(self._context.groups):
            for position, param in enumerate(group["params"]):
                single = self._singles.get(param)
                if single is None or single.plan is None:
                    found.append(Assignment(param, i, position, NO_ENGINE, NO_GRADIENT))
                    continue
                (made,) = single.plan.assignments
                found.append(Assignment(param, i, position, made.engine, made.reason))
        return found

    def end_step(self) -> bool:
        """End a step; tell whether no gradient was left over."""
        self._norms.turn()
        params = (param for group in self._context.groups for param in group["params"])
        return not any(param.grad is not None for param in params)

    def free_gradients(self) -> None:
        """Free gradients that were left over, once they have been used."""
        for group in self._context.groups:
            for param in group["params"]:
                param.grad = None


def check_steps_in_backward(kind: Kind, options: Mapping[str, Any], where: str) -> None:
    """Refuse what must see all gradients at once.

    Raises:
        ValueError: naming it.
    """
    given, rule = kind.options_of(options), kind.rule
    reason = ""
    if given.get("on_nonfinite", "propagate") != "propagate":
        reason = f"on_nonfinite={given['on_nonfinite']!r} must see all gradients before any update"
    elif given.get("differentiable"):
        reason = "differentiable=True needs the gradients after the update"
    elif rule.is_recorded and form_of(rule, given).recording().shared_reductions:
        reason = f"{kind.name} sums over several parameters"
    if reason:
        raise ValueError(
            f"{where}{reason}: it can't step in the backward pass. Step as usual, or leave it out"
        )
