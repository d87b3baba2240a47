"""What a compiled step reads and writes: made once, while the function around it is compiled.

A graph has numbers and tensors alone, so that it knows what was prepared by a number, its handle.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.engines import registry
from steprule.engines.engine import Leaf
from steprule.engines.graphs import UpdatesInGraphs
from steprule.engines.overlap import overlapping
from steprule.formats.choices import check_storing, storing_of
from steprule.formats.floating import FLOATING
from steprule.language.rule import SUPPLIED, Rule
from steprule.optimizer.averaging import STEP_AMONG_AVERAGES
from steprule.optimizer.scheduled import advance_schedules
from steprule.planning.leaf_checks import counts_on_device
from steprule.planning.settings import Context, Settings, differ, requested_engine, settings_of
from steprule.state.labels import label_of
from steprule.state.making import check_state, ensure_state

# A parameter's group, and its position there.
Place = tuple[int, int]


class CannotCompileError(Exception):
    """Says why a step is left out of the graph."""


#: The attribute of an optimizer that has its prepared steps.
KEPT = "_prepared_steps"
_HANDLES = itertools.count(1)
_PREPARED: weakref.WeakValueDictionary[int, PreparedStep] = weakref.WeakValueDictionary()


class PreparedStep:
    """A step over some parameters: those that have a gradient where it is compiled.

    Args:
        optimizer: whose step it is.
        places: of the parameters that have a gradient.

    Attributes:
        handle: the number that it goes by in a graph.
        names: of each parameter, the keys of its state in order.
        arrays: how many tensors the state has of them.
        numbers: what the rule is told at a step, where its operations are in the graph. It is
            written at every step, so that a graph keeps steps in order and drops none.
        is_in_graph: whether the rule's operations are in the graph.

    Raises:
        CannotCompileError: with the reason.
    """

    def __init__(self, optimizer: Any, places: Sequence[Place]) -> None:
        self.handle = next(_HANDLES)
        self._optimizer = weakref.ref(optimizer)
        self.places = places
        context = optimizer._context()
        settings = [settings_of(context, i) for i in range(len(context.groups))]
        self._settings = [each.without_params() for each in settings]
        params = [context.groups[group]["params"][position] for group, position in places]
        for param, (group, _) in zip(params, places, strict=True):
            _check_param(settings[group].kind.rule, param)
        leaves = [
            _leaf(context, settings[group], param, (group, position))
            for param, (group, position) in zip(params, places, strict=True)
        ]
        _check_arrays(leaves, settings)
        self.arrays = sum(len(leaf.state) for leaf in leaves)
        self.names = [tuple(leaf.state) for leaf in leaves]
        self._engines = [self._engine(leaf) for leaf in leaves]
        self.is_in_graph = None not in self._engines
        self._forms = [replace(s.form, capturable=True) for s in settings]
        self._layout = [
            [name for name in form.scalars if name not in SUPPLIED] for form in self._forms
        ]
        count = sum(map(len, self._layout)) + len(leaves) if self.is_in_graph else 1
        self.numbers = torch.zeros(count, dtype=torch.float64)
        # The graph brings the tensors; these are not to be kept alive.
        nothing = torch.empty(0)
        self._leaves = [replace(leaf, param=nothing, grad=nothing, state={}) for leaf in leaves]
        tensors = [tensor for leaf in leaves for tensor in (leaf.param, *leaf.state.values())]
        self._kinds_of_tensors = [(x.shape, x.dtype, x.device) for x in tensors]

    def does_what(self, other: PreparedStep) -> bool:
        """Tell whether it does what another one does, by the flags that there are now."""
        return (
            self.places == other.places
            and self.names == other.names
            and self._engines == other._engines
            and self._kinds_of_tensors == other._kinds_of_tensors
            and [x.storage for x in self._leaves] == [x.storage for x in other._leaves]
            and len(self._settings) == len(other._settings)
            and all(map(Settings.is_as_planned, self._settings, other._settings))
        )

    @property
    def optimizer(self) -> Any:
        """The optimizer whose step it is."""
        optimizer = self._optimizer()
        if optimizer is None:
            raise RuntimeError("the optimizer of this compiled step is gone")
        return optimizer

    def _engine(self, leaf: Leaf) -> UpdatesInGraphs | None:
        """Return the engine that updates a leaf in the graph; None if it can't be there."""
        settings = self._settings[leaf.group]
        options = settings.kind.options_of(settings.group)
        wanted = requested_engine(self.optimizer.engine, options)
        name = registry.candidates(wanted, leaf.param.device.type)[0]
        form = settings.form.of_shape(leaf.param.shape)
        is_fixed = (
            form.rule.is_recorded
            and settings.clip_over is None
            and settings.on_nonfinite == "propagate"
            and leaf.storage.count is None
            and not form.side_slots
            and not form.recording().matrix_operations  # they take plain numbers
            and not form.recording().shared_reductions
        )
        if not is_fixed:
            return None
        engine = registry.load(next(e for e in registry.entries() if e.name == name))
        return engine if isinstance(engine, UpdatesInGraphs) else None

    # -- the rule's operations in the graph -----------------------------------------------

    def begin(self, numbers: Tensor) -> None:
        """Put this step's numbers into a tensor, and count the step where tensors don't.

        Raises:
            RuntimeError: a group's flags are others than when the step was compiled.
        """
        optimizer = self.optimizer
        check_may_step(optimizer)
        context = optimizer._context()
        found: list[float] = []
        for i, names in enumerate(self._layout):
            settings = self._renewed(context, i)
            found += [settings.numbers[name] for name in names]
        params = [context.groups[group]["params"][position] for group, position in self.places]
        found += [float(param in context.fresh) for param in params]
        if found:
            numbers.copy_(torch.tensor(found, dtype=torch.float64))
        context.fresh.difference_update(params)
        context.record.clear()
        advance_schedules(optimizer.param_groups)

    def _renewed(self, context: Context, i: int) -> Settings:
        """Return a group's settings with the numbers that it has now."""
        known = self._settings[i]
        group = context.groups[i]
        now = tuple(map(group.get, known.keys))
        if group is known.group and not known.is_mutable and not differ(now, known.signature):
            return known
        if group is known.group and known.take_numbers(now):
            return known
        renewed = settings_of(context, i)
        if not renewed.is_as_planned(known):
            raise RuntimeError(
                f"group {i} has other flags than when the step was compiled: call "
                "torch.compiler.reset()"
            )
        self._settings[i] = renewed.without_params()
        return renewed

    def update(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        arrays: Sequence[Tensor],
        numbers: Tensor,
    ) -> None:
        """Update a graph's tensors by the rule's operations."""
        rest, each = iter(arrays), iter(numbers.unbind())
        of_groups = [{name: next(each) for name in names} for names in self._layout]
        for i, leaf in enumerate(self._leaves):
            state = {name: next(rest) for name in self.names[i]}
            taken = replace(leaf, param=params[i], grad=grads[i], state=state)
            taken.is_first = next(each)  # type: ignore[assignment]  # a number of the graph
            form = self._forms[leaf.group].of_shape(params[i].shape)
            engine = self._engines[i]
            assert engine is not None
            engine.update_in_graph(form, taken, dict(of_groups[leaf.group]))


def check_may_step(optimizer: Any) -> None:
    """Refuse a step that would be refused, or lost, without a compiler too.

    Raises:
        RuntimeError: parameters are at their averages.
    """
    optimizer._check_may_step()
    if optimizer._is_averaged:
        raise RuntimeError(STEP_AMONG_AVERAGES)


def _check_param(rule: Rule, param: Tensor) -> None:
    """Leave to a plain step what it refuses, or is no matter of dense tensors."""
    if type(param) not in (Tensor, Parameter) or param.layout is not torch.strided:
        raise CannotCompileError(f"a parameter is a {type(param).__name__}, no plain tensor")
    is_refused = param.is_complex() and not rule.takes_complex
    if is_refused or param.dtype not in FLOATING or rule.sparse == "only":
        raise CannotCompileError(f"{rule.name} does not take {param.dtype}, or dense gradients")


def _check_arrays(leaves: Sequence[Leaf], settings: Sequence[Settings]) -> None:
    for leaf in leaves:
        check_state(settings[leaf.group].kind.rule, leaf.param, leaf.state, leaf.label)
        if not all(type(value) is Tensor for value in leaf.state.values()):
            raise CannotCompileError(f"not all state of {leaf.label} is plain tensors")
    if overlapping(leaves):
        raise CannotCompileError("parameters or their state share memory")


def _leaf(context: Context, settings: Settings, param: Tensor, place: Place) -> Leaf:
    """Return a parameter with its state, which is made if there is none."""
    group, position = place
    kind = settings.kind
    options = kind.options_of(context.groups[group])
    storing = storing_of(options, kind.rule.options)
    check_storing(storing, options, f"group {group}: ")
    storage = ensure_state(
        kind.rule,
        options,
        param,
        context.state,
        context.fresh,
        storing,
        counts_on_device=counts_on_device(settings.form, options, param),
    )
    state = context.state.get(param, {})
    label = label_of(context.groups[group], group, position)
    return Leaf(param, param, state, group, position, False, label, storage)


def starting_at_weights(optimizer: Any, places: Sequence[Place]) -> list[Tensor]:
    """Return the parameters whose running averages are yet to be made."""
    context = optimizer._context()
    found = []
    for i, group in enumerate(context.groups):
        slots = settings_of(context, i).kind.rule.slots
        averages = [name for name, slot in slots.items() if slot.is_average]
        params = [group["params"][position] for of, position in places if of == i]
        found += [p for p in params if not context.state.get(p, {}).keys() >= {*averages}]
    return found


def prepare(optimizer: Any, places: Sequence[Place]) -> PreparedStep:
    """Return a prepared step, one that there is by now if it does the same.

    The optimizer keeps it: what the compiler is given for a constant, it keeps for good.

    Raises:
        CannotCompileError: with the reason.
    """
    new = PreparedStep(optimizer, places)
    known: list[PreparedStep] = optimizer.__dict__.setdefault(KEPT, [])
    for one in known:
        if new.does_what(one):
            return one
    known.append(new)
    _PREPARED[new.handle] = new
    return new


def prepared_step(handle: int) -> PreparedStep:
    """Return what was prepared under a handle.

    Raises:
        RuntimeError: the optimizer is gone.
    """
    found = _PREPARED.get(handle)
    if found is None:
        raise RuntimeError("the optimizer of this compiled step is gone")
    return found
