"""What every rule shares, written once: clipping, maximize, and weight decay of either kind."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from steprule.cached import cached_property
from steprule.language.decay import DECIDING, NUMBERS, Decay, decay_of, shrunk
from steprule.language.guards import clip_factor, guards_of
from steprule.language.recording import Recording, record
from steprule.language.rule import OF_SHAPE, Rule
from steprule.ops import clip, norm_of

# Over what the norm is taken that a gradient is clipped by.
ClipNorm = Literal["none", "all", "group", "param"]


@dataclass(frozen=True)
class Form:
    """A rule with all its flags fixed: what is recorded, compiled and cached.

    Two groups of an optimizer whose forms are equal can be updated by one kernel, whatever
    their numbers.

    Of a step that a gradient scaler takes, gradients are ``is_scaled``, divided by the number
    ``grad_scale``; and such a step ``may_be_called_off`` by a number on the device.

    Of a parameter that ``is_sharded`` over processes, sums over its elements, and operations on it
    as a matrix, are shared by those that have a part of it.
    """

    rule: Rule
    flags: tuple[tuple[str, Any], ...]
    present_slots: tuple[str, ...]
    maximize: bool
    decay: Decay
    capturable: bool = False
    clip_norm: ClipNorm = "none"
    clips_value: bool = False
    is_scaled: bool = False
    may_be_called_off: bool = False
    is_sharded: bool = False

    def __hash__(self) -> int:
        return hash((self.rule.name, self.flags, self.present_slots, self.maximize, self.decay))

    @cached_property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers that the form computes with."""
        flags = dict(self.flags)
        names = [name for name in self.rule.needs if name not in flags]
        bound = {"none": (), "param": ("clip_grad_norm",)}.get(self.clip_norm, ("clip_factor",))
        value = ("clip_grad_value",) if self.clips_value else ()
        scale = ("grad_scale",) if self.is_scaled else ()
        return tuple(dict.fromkeys([*names, *NUMBERS[self.decay], *bound, *value, *scale]))

    @cached_property
    def needs_shape(self) -> bool:
        """Whether it computes with the parameter's shape."""
        return not set(OF_SHAPE).isdisjoint(self.scalars)

    @cached_property
    def array_slots(self) -> tuple[str, ...]:
        """The slots with one number for each element."""
        return tuple(n for n in self.present_slots if not self.rule.slots[n].is_scalar)

    @cached_property
    def each_slots(self) -> dict[str, Literal["row", "column"]]:
        """Those among them with one number for each row or column of a matrix instead."""
        shapes = ((name, self.rule.slots[name].shape) for name in self.present_slots)
        return {n: shape for n, shape in shapes if shape == "row" or shape == "column"}

    @cached_property
    def side_slots(self) -> dict[str, Literal["left", "right"]]:
        """Those that are square matrices of one of the parameter's sides."""
        shapes = ((name, self.rule.slots[name].shape) for name in self.present_slots)
        return {n: shape for n, shape in shapes if shape == "left" or shape == "right"}

    def of_shape(self, shape: Sequence[int]) -> Form:
        """Return the form that a parameter of this shape takes: slots may depend on it."""
        return _of_shape(self, tuple(shape) if self.side_slots else (1,) * len(shape))

    def over_shards(self) -> Form:
        """Return the form that a parameter takes of which each process has a part."""
        return _over_shards(self)

    @cached_property
    def scalar_slots(self) -> tuple[str, ...]:
        """The slots with one number for the whole parameter."""
        return tuple(n for n in self.present_slots if self.rule.slots[n].is_scalar)

    @cached_property
    def slots_of_sums(self) -> tuple[str, ...]:
        """The slots of one number that follow from sums over elements."""
        if not self.rule.is_recorded:
            return ()
        recording = self.recording()
        made = {x.result for x in recording.tensor_operations}
        return tuple(n for n in self.scalar_slots if recording.outputs[n] in made)

    @cached_property
    def switches(self) -> frozenset[str]:
        """The options that decide, by being 0 or None, which form a group takes."""
        return deciding_options(self.rule)

    @cached_property
    def touches_every_row(self) -> bool:
        """Whether rows without a gradient change too: a sparse gradient must be made dense."""
        return any(self.rule.slots[name].needs_every_step for name in self.present_slots)

    @property
    def decays_every_row(self) -> bool:
        """Whether weight decay changes rows without a gradient, where sparse ones are taken."""
        is_of_rule = "weight_decay" in self.rule.needs and self.rule.sparse != "refused"
        return self.decay != "none" or is_of_rule

    @property
    def sparse_reason(self) -> str:
        """Why an engine for dense gradients refuses a sparse one."""
        if self.touches_every_row:
            return "its state changes in every row: the sparse gradient is made dense"
        return "the gradient is sparse"

    def __call__(self, param: Any, grad: Any, /, *slots: Any, **scalars: Any) -> Any:
        """Update one parameter: shared terms, then the rule."""
        if self.is_scaled:
            grad = grad / scalars["grad_scale"]
        grad = self._clipped(grad, scalars)
        if self.maximize:
            grad = -grad
        if self.decay == "l2":
            grad = grad + scalars["weight_decay"] * param
        elif self.decay != "none":
            param = shrunk(param, self.decay, scalars)
        wanted = {name: value for name, value in scalars.items() if name in self.rule.needs}
        return self.rule.function(param, grad, *slots, **wanted, **dict(self.flags))

    def _clipped(self, grad: Any, scalars: Mapping[str, Any]) -> Any:
        """Return the gradient within its bounds: of the norm, then of each element."""
        if self.clip_norm != "none":
            grad = grad * self._clip_factor(grad, scalars)
        if self.clips_value:
            grad = clip(grad, -scalars["clip_grad_value"], scalars["clip_grad_value"])
        return grad

    def _clip_factor(self, grad: Any, scalars: Mapping[str, Any]) -> Any:
        """Return what bounds the norm: of several parameters, it is known before the step."""
        if self.clip_norm == "param":
            return clip_factor(scalars["clip_grad_norm"], norm_of(grad))
        return scalars["clip_factor"]

    def recording(self) -> Recording:
        """Return the form, run once on symbols (kept: a form never changes)."""
        return _recording(self)


@functools.cache
def _of_shape(form: Form, shape: tuple[int, ...]) -> Form:
    slots, flags = form.rule.slots, dict(form.flags)
    kept = tuple(n for n in form.present_slots if slots[n].shape_for(shape, flags) is not None)
    return form if kept == form.present_slots else replace(form, present_slots=kept)


@functools.cache
def _over_shards(form: Form) -> Form:
    if not form.rule.is_recorded:
        return form
    recording = form.recording()
    is_of_whole = recording.has_reductions or recording.matrix_operations
    return replace(form, is_sharded=True) if is_of_whole else form


def record_form(form: Form) -> Recording:
    """Run a form once on symbols, anew; :meth:`Form.recording` keeps what it returns."""
    return record(
        form,
        arrays={
            "param": True,
            "grad": True,
            **{name: name in form.present_slots for name in form.rule.slots},
        },
        scalars=form.scalars,
        flags={},
        scalar_slots=form.scalar_slots,
        each=form.each_slots,
        sides=form.side_slots,
        is_sharded=form.is_sharded,
    )


_recording = functools.cache(record_form)


@functools.cache
def deciding_options(rule: Rule) -> frozenset[str]:
    """Return the options that decide, by being 0 or None, which form a group takes."""
    slots = (slot.when for slot in rule.slots.values() if slot.when is not None)
    return frozenset((*DECIDING, *slots))


def form_of(rule: Rule, options: Mapping[str, Any]) -> Form:
    """Return the form that a group with these options takes."""
    guards = guards_of(options, rule.options)
    return Form(
        rule=rule,
        flags=tuple((name, _plain(options[name])) for name in rule.flags),
        present_slots=tuple(n for n, slot in rule.slots.items() if slot.is_present(options)),
        maximize=bool(options.get("maximize", False)),
        decay=decay_of(rule, options),
        capturable=bool(options.get("capturable", False)),
        clip_norm="none" if guards["clip_grad_norm"] is None else guards["clip_grad_norm_over"],
        clips_value=guards["clip_grad_value"] is not None,
    )


def _plain(flag: Any) -> Any:
    """Return a flag that came as an array or tensor of one element as what it holds."""
    return flag.item() if hasattr(flag, "item") else flag
