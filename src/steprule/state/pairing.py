"""Which saved parameter is which: by name where both sides know names, else by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from steprule.state.labels import label_of

Rename: TypeAlias = Mapping[str, str] | Callable[[str], str]
# What torch's wrappers put in names: torch.compile, FSDP, checkpoint_wrapper; and, in front of
# all, DistributedDataParallel.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_PARALLEL = "module."
_SHOWN = 5


@dataclass(frozen=True)
class LoadReport:
    """What loading found that does not fit; all empty where everything did.

    Attributes:
        missing: parameters of this optimizer (or a model's) that were not saved: their state
            starts fresh (a model's stay as they are).
        unexpected: saved parameters that there are no more: they are left out.
        reshaped: parameters saved in another shape, with both shapes: as those that are missing.
        regrouped: groups of this optimizer that have no counterpart: their options stay.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    regrouped: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether everything was loaded, and nothing left over."""
        return not (self.missing or self.unexpected or self.reshaped or self.regrouped)

    def __str__(self) -> str:
        if self.is_exact:
            return "everything was loaded"
        told = [
            (self.missing, "not saved, left as new"),
            (self.unexpected, "saved only, left out"),
            (self.reshaped, "saved in another shape, left as new"),
            (self.regrouped, "without a counterpart, their options stay"),
        ]
        return "\n".join(f"{what}: {', '.join(names)}" for names, what in told if names)


@dataclass(frozen=True)
class Pairing:
    """What belongs together.

    Attributes:
        keys: for each group of the optimizer and each parameter in it, the saved one's key.
        sources: for each group, the index of the saved group that its options come from.
        report: what is left over.
    """

    keys: Sequence[Sequence[Any]]
    sources: Sequence[int | None]
    report: LoadReport


#: The key of a parameter that was not saved.
NOT_SAVED = object()


def paired(
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    *,
    strict: bool,
    rename: Rename | None,
) -> Pairing:
    """Pair an optimizer's parameters with those of a state dict.

    Args:
        groups: the optimizer's.
        saved: the state dict's.
        strict: refuse whatever is left over.
        rename: what a saved name is called now.

    Raises:
        ValueError: something is left over; the message names it. Or ``rename`` has no names to
            rename.
    """
    names = _unique_names(groups)
    saved_names = _unique_names(saved) if rename is None else _renamed(saved, rename)
    if names is not None and saved_names is not None:
        return _paired_by_name(groups, saved, names, saved_names, strict)
    return _paired_by_position(groups, saved, strict)


def _names_in(groups: Iterable[Mapping[str, Any]]) -> list[list[str]] | None:
    """Return the names of all parameters, or None if some have none."""
    found = [group.get("param_names") for group in groups]
    counts = [len(group["params"]) for group in groups]
    if not all(
        isinstance(names, (list, tuple))
        and len(names) == count
        and all(isinstance(name, str) for name in names)
        for names, count in zip(found, counts, strict=True)
    ):
        return None
    return [list(names) for names in found if names is not None]


def _unique_names(groups: Sequence[Mapping[str, Any]]) -> list[list[str]] | None:
    """Return names that tell parameters apart, or None."""
    names = _names_in(groups)
    if names is None:
        return None
    flat = [name for each in names for name in each]
    return names if len(set(flat)) == len(flat) else None


def _renamed(saved: Sequence[Mapping[str, Any]], rename: Rename) -> list[list[str]]:
    names = _names_in(saved)
    if names is None:
        raise ValueError(
            "rename: the state dict has no names of parameters. Names are saved by optimizers that "
            "were given model.named_parameters(); pass the parameters in the order of the state "
            "dict instead"
        )
    if isinstance(rename, Mapping):
        present = [name for each in names for name in each]
        unknown = rename.keys() - {*present}
        if unknown:
            gone = _listed(sorted(map(repr, unknown)))
            raise ValueError(
                f"rename: no parameter {gone} in the state dict; it has "
                f"{_listed(map(repr, present))}"
            )
        table = rename
        names = [[table.get(name, name) for name in each] for each in names]
    elif callable(rename):
        names = [[rename(name) for name in each] for each in names]
    else:
        raise TypeError(
            f"rename must be a dict of old names to new ones, or a function, got {rename!r}"
        )
    flat = [name for each in names for name in each]
    if not all(isinstance(name, str) for name in flat):
        raise TypeError("rename must return strings: names of parameters of this optimizer")
    twice = sorted(name for name, count in Counter(flat).items() if count > 1)
    if twice:
        raise ValueError(f"rename: several saved parameters became {_listed(map(repr, twice))}")
    return names


def _paired_by_name(
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
    names: list[list[str]],
    saved_names: list[list[str]],
    strict: bool,
) -> Pairing:
    places = {
        name: (i, group["params"][position])
        for i, (group, each) in enumerate(zip(saved, saved_names, strict=True))
        for position, name in enumerate(each)
    }
    own = {name for each in names for name in each}
    same_but_wrapped = _by_plain_name(places.keys() - own, own - places.keys())
    keys: list[list[Any]] = []
    origins: list[set[int]] = []
    missing: list[str] = []
    for each in names:
        keys.append([])
        origins.append(set())
        for name in each:
            found = places.get(same_but_wrapped.get(name, name))
            if found is None:
                missing.append(repr(name))
                keys[-1].append(NOT_SAVED)
            else:
                origins[-1].add(found[0])
                keys[-1].append(found[1])
    taken = own | set(same_but_wrapped.values())
    unexpected = [repr(name) for each in saved_names for name in each if name not in taken]
    report = LoadReport(missing=tuple(missing), unexpected=tuple(unexpected))
    if strict and not report.is_exact:
        raise ValueError(
            "the state dict has other parameters than the optimizer: "
            f"{_left_over(missing, unexpected)}. Say rename={{...}} for what has another name now, "
            "or strict=False to load what fits"
        )
    sources = _sources(origins, groups, saved)
    regrouped = [f"group {i}" for i, source in enumerate(sources) if source is None]
    if strict and regrouped:
        raise ValueError(
            "loaded state dict has a different number of parameter groups, or its parameters are "
            f"grouped otherwise: {_listed(regrouped)} of the optimizer has no counterpart among "
            f"{len(saved)} groups whose options it could take. strict=False loads the state and "
            "leaves these groups their options"
        )
    return Pairing(keys, sources, replace(report, regrouped=tuple(regrouped)))


def _sources(
    origins: Sequence[set[int]],
    groups: Sequence[Mapping[str, Any]],
    saved: Sequence[Mapping[str, Any]],
) -> list[int | None]:
    """Return the saved group that each group is, where it is one and no other group is it too.

    Args:
        origins: the saved groups that each group's parameters stood in.
        groups: the optimizer's.
        saved: the state dict's.
    """
    found: list[int | None] = []
    for i, origin in enumerate(origins):
        is_empty = not groups[i]["params"] and i < len(saved) and not saved[i]["params"]
        if is_empty:
            found.append(i)
        else:
            found.append(next(iter(origin)) if len(origin) == 1 else None)
    return [source if found.count(source) == 1 else None for source in found]


def _by_plain_name(saved: Iterable[str], own: Iterable[str]) -> dict[str, str]:
    """Return for names that differ by a wrapper's part alone what they were saved as."""
    plain: dict[str, list[str]] = {}
    for name in saved:
        plain.setdefault(_plain(name), []).append(name)
    ours: dict[str, list[str]] = {}
    for name in own:
        ours.setdefault(_plain(name), []).append(name)
    return {
        names[0]: plain[key][0]
        for key, names in ours.items()
        if len(names) == 1 and len(plain.get(key, ())) == 1
    }


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix(_PARALLEL)


def _paired_by_position(
    groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]], strict: bool
) -> Pairing:
    if strict:
        _check_counts(groups, saved)
    keys: list[list[Any]] = []
    missing: list[str] = []
    for i, group in enumerate(groups):
        known = list(saved[i]["params"]) if i < len(saved) else []
        count = len(group["params"])
        keys.append([*known[:count], *[NOT_SAVED] * (count - len(known))])
        missing += [label_of(group, i, position) for position in range(len(known), count)]
    unexpected = [
        label_of(saved_group, i, position)
        for i, saved_group in enumerate(saved)
        for position in range(len(keys[i]) if i < len(keys) else 0, len(saved_group["params"]))
    ]
    sources = [i if i < len(saved) else None for i in range(len(groups))]
    regrouped = [f"group {i}" for i, source in enumerate(sources) if source is None]
    return Pairing(
        keys, sources, LoadReport(tuple(missing), tuple(unexpected), (), tuple(regrouped))
    )


def _check_counts(groups: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]]) -> None:
    if len(saved) != len(groups):
        raise ValueError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(saved)}, the optimizer has {len(groups)}"
        )
    for i, (group, saved_group) in enumerate(zip(groups, saved, strict=True)):
        if len(saved_group["params"]) != len(group["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                f"optimizer's group: group {i} has {len(saved_group['params'])} parameters "
                f"in the state dict, {len(group['params'])} in the optimizer"
            )


def _left_over(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    told = []
    if missing:
        told.append(f"{_listed(missing)} of the optimizer not in the state dict")
    if unexpected:
        told.append(f"{_listed(unexpected)} in the state dict only")
    return "; ".join(told)


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
