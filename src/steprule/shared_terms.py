"""What every rule shares, written once: maximize, and weight decay of either kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from steprule.recording import Recording, record
from steprule.rule import SUPPLIED, Rule

Decay = Literal["none", "l2", "decoupled"]


@dataclass(frozen=True)
class Form:
    """A rule with all its flags fixed: what is recorded, compiled and cached.

    Two groups of an optimizer whose forms are equal can be updated by one kernel, whatever
    their numbers.
    """

    rule: Rule
    flags: tuple[tuple[str, bool], ...]
    present_slots: tuple[str, ...]
    maximize: bool
    decay: Decay
    capturable: bool = False

    def __hash__(self) -> int:
        return hash((self.rule.name, self.flags, self.present_slots, self.maximize, self.decay))

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the numbers that the form computes with."""
        flags = dict(self.flags)
        names = [name for name in self.rule.needs if name not in flags]
        shared = {"none": (), "l2": ("weight_decay",), "decoupled": ("lr", "weight_decay")}
        return tuple(dict.fromkeys([*names, *shared[self.decay]]))

    @property
    def array_slots(self) -> tuple[str, ...]:
        """The slots with one number for each element."""
        return tuple(n for n in self.present_slots if not self.rule.slots[n].scalar)

    @property
    def scalar_slots(self) -> tuple[str, ...]:
        """The slots with one number for the whole parameter."""
        return tuple(n for n in self.present_slots if self.rule.slots[n].scalar)

    def __call__(self, param: Any, grad: Any, *slots: Any, **scalars: Any) -> Any:
        """The whole update of one parameter: shared terms, then the rule."""
        if self.maximize:
            grad = -grad
        if self.decay == "l2":
            grad = grad + scalars["weight_decay"] * param
        elif self.decay == "decoupled":
            param = param * (1 - scalars["lr"] * scalars["weight_decay"])
        wanted = {name: value for name, value in scalars.items() if name in self.rule.needs}
        return self.rule.function(param, grad, *slots, **wanted, **dict(self.flags))

    def recording(self) -> Recording:
        """The form, run once on symbols (kept: a form never changes)."""
        return _recording(self)


@functools.cache
def _recording(form: Form) -> Recording:
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
    )


def form_of(rule: Rule, options: Mapping[str, Any]) -> Form:
    """The form that a group with these options takes."""
    decay: Decay = "none"
    weight_decay = options.get("weight_decay", 0)
    # A decay of 0 must skip the term: 0 * inf is nan. A tensor may become non-zero later.
    if "weight_decay" not in rule.needs and (_is_tensor(weight_decay) or weight_decay != 0):
        decay = "decoupled" if options.get("decoupled_weight_decay") else "l2"
    return Form(
        rule=rule,
        flags=tuple((name, bool(options[name])) for name in rule.flags),
        present_slots=tuple(n for n, slot in rule.slots.items() if slot.is_present(options)),
        maximize=bool(options.get("maximize", False)),
        decay=decay,
        capturable=bool(options.get("capturable", False)),
    )


def _is_tensor(x: object) -> bool:
    return not isinstance(x, (int, float))


def number_reader(form: Form) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function giving a group's numbers in the order of ``form.scalars``, less the supplied."""
    part_of = {
        part: (option, i)
        for option, names in form.rule.parts.items()
        for i, part in enumerate(names)
    }
    names = [name for name in form.scalars if name not in SUPPLIED]

    def numbers(options: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(
            options[part_of[n][0]][part_of[n][1]] if n in part_of else options[n] for n in names
        )

    return numbers
