"""What updates a parameter: optimizers by pattern, with options of their own."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from steprule.model_groups.listing import shortened
from steprule.model_groups.named import NamedParam
from steprule.model_groups.patterns import check_pattern, matches
from steprule.optimizer import Optimizer, SharedOptions
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS

Name: TypeAlias = str | type[Optimizer]
Rules: TypeAlias = Mapping[str, Name | tuple[Name, Mapping[str, Any]]]

# What a rule's options can't be, and where it is said.
_ELSEWHERE = {
    "params": "the pattern says which",
    "engine": "build_optimizer(..., engine=) says it for all",
    "lr": 'build_optimizer(groups, options={"muon": {"lr": 0.02}}) gives each optimizer its own',
}


@dataclass(frozen=True)
class Updater:
    """What updates the parameters of a pattern.

    Attributes:
        cls: the optimizer.
        options: its own.
        label: what it is called in the names of groups: the class, with a number where several
            have other options.
    """

    cls: type[Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)
    label: str = ""

    def takes(self, one: NamedParam) -> bool:
        """Tell whether it updates parameters of so many axes."""
        is_flat = bool(self.options.get("flatten"))
        return not self.cls.only_2d or one.param.ndim == 2 or (is_flat and one.param.ndim > 2)


def checked_rules(rule: Any, params: Sequence[NamedParam]) -> dict[str, Updater]:
    """Return what updates what each pattern matches.

    Raises:
        TypeError, ValueError: as :func:`steprule.param_groups`.
    """
    if rule is None:
        return {}
    if not isinstance(rule, Mapping):
        raise TypeError(f"rule must be a dict, as {{'blocks.*': 'muon'}}, got {rule!r}")
    made: dict[str, Updater] = {}
    for pattern, given in rule.items():
        check_pattern("rule", pattern, params)
        where = f"rule[{pattern!r}]"
        name, options = given if _is_pair(given) else (given, {})
        cls = optimizer_class(where, name)
        if cls.rule is None:
            raise ValueError(
                f"{where}: {cls.__name__} has no rule for a single parameter, it updates all of a "
                f"model at once: {cls.__name__}(model.parameters())"
            )
        _check_options(where, cls, options)
        made[pattern] = _labelled(Updater(cls, dict(options)), made.values())
        _check_takes_some(pattern, made[pattern], params)
    return made


def optimizer_class(where: str, given: Any) -> type[Optimizer]:
    """Return an optimizer class of this library, by its name as in ``steprule list`` or itself.

    Raises:
        ValueError: an unknown name, with one near it.
        TypeError: something else.
    """
    if isinstance(given, str):
        found = OPTIMIZERS.get(given.lower())
        if found is None:
            raise ValueError(
                f"{where}: no optimizer {given!r}{suggestion(given.lower(), OPTIMIZERS)}; there "
                f"are {', '.join(OPTIMIZERS)}"
            )
        given = found
    if not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise TypeError(
            f"{where} must be the name or the class of an optimizer of steprule, got {given!r}"
        )
    return given


def updater_of(one: NamedParam, rules: Mapping[str, Updater]) -> Updater | None:
    """Return what updates a parameter: of the first pattern that matches; None for the default."""
    for pattern, updater in rules.items():
        if matches(pattern, one) and updater.takes(one):
            return updater
    return None


def classes_of(classes: Iterable[type[Optimizer]]) -> dict[str, type[Optimizer]]:
    """Return classes by their names, under which groups say what updates them.

    Raises:
        ValueError: two of one name.
    """
    known: dict[str, type[Optimizer]] = {}
    for cls in classes:
        if known.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(
                f"rule: two different classes are named {cls.__name__!r}, which is how groups say "
                "what updates them: rename one"
            )
    return known


def notes_on(rules: Mapping[str, Updater], params: Sequence[NamedParam]) -> list[str]:
    """Return what is to be looked at where an optimizer of matrices has what is usually not its."""
    tables: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    for one in params:
        updater = updater_of(one, rules)
        if updater is not None and updater.cls.only_2d and _is_no_hidden_matrix(one):
            tables.setdefault(updater.cls.__name__, []).append(one.name)
        for pattern, other in rules.items():
            if updater is None and one.param.ndim > 2 and matches(pattern, one):
                left.setdefault(other.cls.__name__, []).append(one.name)
    notes = [
        f"{name} updates embeddings, heads or scales, which are better left to another rule: "
        f"{', '.join(shortened(names))} (name them first: rule={{{names[0]!r}: 'adamw', ...}})"
        for name, names in tables.items()
    ]
    return notes + [
        f"{name} leaves parameters of more than two axes to the default: "
        f"{', '.join(shortened(names))} (as matrices: ({name.lower()!r}, {{'flatten': True}}))"
        for name, names in left.items()
    ]


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)


def _check_options(where: str, cls: type[Optimizer], options: Mapping[str, Any]) -> None:
    known = {*inspect.signature(cls).parameters, *SharedOptions.__annotations__} - {"shared"}
    for name in options:
        if name in _ELSEWHERE:
            raise TypeError(f"{where}: {name} is no option of a rule: {_ELSEWHERE[name]}")
        if name not in known:
            raise TypeError(
                f"{where}: {cls.__name__} has no option {name!r}{suggestion(str(name), known)}"
            )


def _labelled(updater: Updater, others: Iterable[Updater]) -> Updater:
    """Return what updates a pattern's parameters; one there was, where it has the same options."""
    alike = {one.label: one for one in others if one.cls.__name__ == updater.cls.__name__}
    for one in alike.values():
        if one.cls is updater.cls and one.options == updater.options:
            return one
    name = updater.cls.__name__.lower()
    number = f"_{len(alike) + 1}" if alike else ""
    return Updater(updater.cls, updater.options, f"{name}{number}")


def _check_takes_some(pattern: str, updater: Updater, params: Sequence[NamedParam]) -> None:
    matched = [one for one in params if matches(pattern, one)]
    if not matched or any(updater.takes(one) for one in matched):
        return
    name = updater.cls.__name__
    shapes = sorted({str(tuple(one.param.shape)) for one in matched})[:3]
    remedy = ""
    if any(one.param.ndim > 2 for one in matched):
        remedy = f": it takes more axes as matrices with ({name.lower()!r}, {{'flatten': True}})"
    raise ValueError(
        f"rule: {name} takes matrices (two axes) alone, and {pattern!r} matches none: there are "
        f"{', '.join(shapes)}{remedy}"
    )


def _is_no_hidden_matrix(one: NamedParam) -> bool:
    """Tell whether a matrix is an embedding, by its name a head, or in truth a vector."""
    parts = one.name.lower().split(".")[:-1]
    is_head = any(part in ("head", "heads", "lm_head", "classifier", "embed_out") for part in parts)
    return one.is_table or is_head or min(one.param.shape) == 1
