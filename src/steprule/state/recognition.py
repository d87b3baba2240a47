"""State dicts of other optimizers, told by the options and the state that they lack or have."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steprule.language.averaging import DECAY
from steprule.language.rule import Rule

#: Options that (nearly) all optimizers have: they tell none from another.
COMMON = frozenset(
    (
        "lr",
        "weight_decay",
        "maximize",
        "foreach",
        "fused",
        "capturable",
        "differentiable",
        "decoupled_weight_decay",
    )
)


@dataclass(frozen=True)
class Marks:
    """What an optimizer's state dict is known by: keys of its state, options of its groups."""

    state: frozenset[str]
    options: frozenset[str]


#: Of every optimizer of this package, by its name.
KNOWN: dict[str, Marks] = {}


def check_options_kind(
    name: str, own: Collection[str], slots: Collection[str], saved: Mapping[str, Any], index: int
) -> None:
    """Refuse a saved group that lacks this optimizer's options or has another's.

    Options are names that users give to things of their own, and a state dict may be an older one
    that lacks some: neither tells anything alone. Both together do, and so do all the options of
    another optimizer whose state would be taken for this one's.

    Args:
        name: the optimizer's.
        own: its options, but for :data:`COMMON` ones.
        slots: its slots.
        saved: the group.
        index: which it is.

    Raises:
        ValueError: saying whose it may be.
    """
    missing = [option for option in own if option not in saved]
    of_others = frozenset().union(*(marks.options for marks in KNOWN.values())) - {*own}
    foreign = sorted(of_others.intersection(saved))
    if missing and foreign:
        likely = _likely((), [key for key in saved if isinstance(key, str)])
    else:
        likely = _alike(name, own, slots, saved)
    if likely:
        has = foreign or sorted(KNOWN[likely[0]].options)
        lacks = f" and lacks {_listed(missing)}" if missing else ""
        raise ValueError(
            f"the state dict is not one of {name}: its group {index} has "
            f"{_listed(has)}{lacks}{_says(likely)}"
        )


def _alike(
    name: str, own: Collection[str], slots: Collection[str], saved: Mapping[str, Any]
) -> list[str]:
    """Return the optimizers all of whose options a group has, and whose state would do for this.

    They have fewer options, the others missing here, or more.
    """
    options, state = {*own}, {*slots}
    return [
        other
        for other, marks in KNOWN.items()
        if other != name
        and marks.options
        and marks.options <= saved.keys()
        and (
            (state <= marks.state and not options <= saved.keys())
            or (marks.state <= state and options < marks.options)
        )
    ]


def check_entry_kind(
    name: str,
    rule: Rule,
    saved_group: Mapping[str, Any],
    param: Tensor,
    entry: Mapping[str, Any],
    label: str,
) -> None:
    """Refuse the state of a parameter that lacks this rule's entries or has another's.

    Raises:
        ValueError: naming the parameter and what it has.
    """
    if not entry:
        return
    # An option that the saved run did not have is not one that its state tells of.
    needed = [
        slot_name
        for slot_name, slot in rule.slots.items()
        if slot.shape_for(param.shape, saved_group) is not None
        and (slot.when is None or _is_on(saved_group.get(slot.when), slot.when_is))
        and not (slot.is_average and saved_group.get(DECAY) is None)
    ]
    if rule.counts_steps:
        needed.insert(0, "step")
    own = {"step", *rule.slots}
    of_others = frozenset().union(*(marks.state for marks in KNOWN.values())) - own
    missing = [key for key in needed if key not in entry]
    foreign = [key for key in entry if isinstance(key, str) and key in of_others]
    # Users keep things of their own in the state, under any name: alone these tell nothing.
    has_none = own.isdisjoint(entry) and not foreign
    is_others = bool(foreign) and (
        bool(_foreign_options(rule, saved_group))
        or any({*needed} - {"step"} < marks.state <= entry.keys() for marks in KNOWN.values())
    )
    if (missing and not has_none) or is_others:
        present = [key for key in entry if isinstance(key, str) and ":" not in key]
        likely = _likely(present, ())
        lacks = f" and lacks {_listed(missing)}" if missing else ""
        kept = _listed(needed) if needed else "nothing"
        raise ValueError(
            f"the state dict is not one of {name}: the state of {label} has {_listed(present)}"
            f"{lacks}, {name} keeps {kept}{_says(likely)}"
        )


def _is_on(value: Any, word: str | None) -> bool:
    """Tell whether an option has a value that its slot is there for: a word, or any that is on."""
    if word is not None:
        return bool(value == word)
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_meta and bool(value)
    return bool(value)


def _foreign_options(rule: Rule, saved_group: Mapping[str, Any]) -> set[str]:
    """Return the options of a saved group that only other optimizers have."""
    of_others = frozenset().union(*(marks.options for marks in KNOWN.values()))
    return set(of_others.intersection(saved_group)) - {*rule.options, *rule.flags}


def _likely(state: Collection[str], options: Collection[str]) -> Sequence[str]:
    """Return the optimizers that state or options of these names can be of."""
    ours = {*state} - {"step"}
    chosen = {*options} & frozenset().union(*(marks.options for marks in KNOWN.values()))
    return [
        name
        for name, marks in KNOWN.items()
        if (bool(ours) and ours <= marks.state) or (bool(chosen) and chosen <= marks.options)
    ]


def _says(likely: Sequence[str]) -> str:
    found = f" (it looks like one of {', '.join(likely)})" if likely else ""
    return f"{found}: load it into the optimizer that it is of"


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))
