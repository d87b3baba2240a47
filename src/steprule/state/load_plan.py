"""A state dict checked against an optimizer, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.placing import look_at
from steprule.language.rule import Rule
from steprule.state.copying import own_copy
from steprule.state.labels import label_of
from steprule.state.pairing import NOT_SAVED, Pairing, Rename, paired
from steprule.state.recognition import check_entry_kind
from steprule.state.storing import column_problem, number_problem


@dataclass(frozen=True)
class Loader:
    """What an optimizer knows of loading.

    Attributes:
        kinds: for each group, the name and rule of what updates it; None for one without a rule.
        merged: makes of a group and its saved one what the group will be.
        entry: makes of a parameter, its saved state and its group as it will be what is kept.
        check_group: refuses a saved group of another optimizer.
        check_entry: refuses a saved entry, where there is no rule to tell.
        is_of_all: whether what is kept with the first parameter is of all, in their order.
    """

    kinds: Sequence[tuple[str, Rule | None]]
    merged: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    entry: Callable[[Tensor, Any, Mapping[str, Any]], Any]
    check_group: Callable[[Mapping[str, Any], int], None]
    check_entry: Callable[[Any, str], None]
    is_of_all: bool


@dataclass(frozen=True)
class Place:
    """A parameter, the group that it is in, and its name in messages."""

    param: Tensor
    group: int
    label: str


class LoadPlan:
    """A state dict that has been checked against an optimizer; nothing is changed by it.

    Args:
        groups: the optimizer's.
        state_dict: what is to be loaded.
        loader: what the optimizer knows of it.
        strict: refuse whatever is left over.
        rename: what a saved parameter is called now.

    Attributes:
        groups: as they will be.
        report: what did not fit.

    Raises:
        TypeError: not a state dict.
        ValueError: of another optimizer; or with other groups, parameters or shapes.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state_dict: Mapping[str, Any],
        loader: Loader,
        *,
        strict: bool = True,
        rename: Rename | None = None,
    ) -> None:
        check_form(state_dict)
        saved = deepcopy(state_dict["param_groups"])
        self._loader = loader
        self._saved_state = {key: _dense(x) for key, x in state_dict["state"].items()}
        pairing = paired(groups, saved, strict=strict, rename=rename)
        if loader.is_of_all:
            _check_order(pairing, saved)
        self.groups = [
            {**self._merged(group, saved, source), "params": group["params"]}
            for group, source in zip(groups, pairing.sources, strict=True)
        ]
        for i, source in enumerate(pairing.sources):
            if source is not None:
                loader.check_group(saved[source], i)
        own_groups = [saved[i] if i is not None else {} for i in pairing.sources]
        self._places = {
            key: Place(param, i, label_of(group, i, position))
            for i, (group, keys) in enumerate(zip(groups, pairing.keys, strict=True))
            for position, (param, key) in enumerate(zip(group["params"], keys, strict=True))
            if key is not NOT_SAVED
        }
        reshaped = []
        for key, entry in self._saved_state.items():
            place = self._places.get(key)
            problem = None if place is None else self._problem(place, entry, own_groups)
            if problem is None:
                continue
            if strict:
                raise ValueError(problem)
            reshaped.append(problem)
            del self._places[key]
        # Of parameters that this optimizer has not, or that changed their shape.
        self._left_out = {key for group in saved for key in group["params"]} - self._places.keys()
        self.report = replace(pairing.report, reshaped=tuple(reshaped))

    def _merged(
        self, group: Mapping[str, Any], saved: Sequence[Mapping[str, Any]], source: int | None
    ) -> Mapping[str, Any]:
        if source is None:
            return group
        taken = dict(saved[source])
        # The saved order of names is that of the saved parameters.
        if "param_names" in group:
            taken["param_names"] = group["param_names"]
        return self._loader.merged(group, taken)

    def _problem(
        self, place: Place, entry: Any, saved_groups: Sequence[Mapping[str, Any]]
    ) -> str | None:
        """Return why a saved entry can't be this parameter's, or refuse the whole state dict."""
        name, rule = self._loader.kinds[place.group]
        if rule is None:
            self._loader.check_entry(entry, place.label)
            return None
        if not isinstance(entry, Mapping):
            raise TypeError(f"loaded state of {place.label} must be a dict, got {entry!r}")
        saved_group = saved_groups[place.group]
        check_entry_kind(name, rule, saved_group, place.param, entry, place.label)
        return _shape_problem(rule, place.param, entry, place.label)

    def keys(self) -> list[Any]:
        """Return the keys of the state to be kept, in order: parameters, and others."""
        return [key for key, _ in self._kept()]

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Give the state to be kept by its keys, in tensors of its own, made one by one."""
        for key, (entry, place) in self._kept():
            if place is None:
                yield key, own_copy(entry)
            else:
                yield key, self._loader.entry(place.param, entry, self.groups[place.group])

    def keep_only(self, is_kept: Callable[[Tensor], bool]) -> None:
        """Leave out what was checked of parameters whose state is kept elsewhere."""
        elsewhere = {key for key, place in self._places.items() if not is_kept(place.param)}
        self._left_out |= elsewhere
        for key in elsewhere:
            del self._places[key]

    def look_at_files(self) -> None:
        """Have what will be read of files looked at for damage, while nothing has changed.

        Raises:
            CheckpointError: it is damaged.
        """
        for _, (entry, place) in self._kept():
            has_rule = place is not None and self._loader.kinds[place.group][1] is not None
            for value in entry.values() if isinstance(entry, Mapping) else ():
                if isinstance(value, Tensor):
                    look_at(value, place.param if place is not None and has_rule else None)

    def _kept(self) -> list[tuple[Any, tuple[Any, Place | None]]]:
        found: list[tuple[Any, tuple[Any, Place | None]]] = []
        for key, entry in self._saved_state.items():
            place = self._places.get(key)
            if place is not None or key not in self._left_out:
                found.append((key if place is None else place.param, (entry, place)))
        return found


def _dense(entry: Any) -> Any:
    """Return an entry without sparse tensors: such is torch's momentum of sparse gradients."""
    if not isinstance(entry, dict):
        return entry
    return {
        key: value.to_dense() if isinstance(value, Tensor) and value.is_sparse else value
        for key, value in entry.items()
    }


def check_form(state_dict: Any) -> None:
    """Refuse what is no state dict.

    Raises:
        TypeError: saying what it lacks.
    """
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            raise TypeError(
                f"state_dict has no entry {key!r}: pass what an optimizer's state_dict() "
                "returned (was this a model's, or a whole checkpoint?)"
            )
    listed = state_dict["param_groups"]
    is_list = isinstance(listed, (list, tuple))
    if not is_list or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), (list, tuple)) for g in listed
    ):
        raise TypeError("state_dict['param_groups'] must be a list of dicts with key 'params'")
    if not isinstance(state_dict["state"], Mapping):
        raise TypeError("state_dict['state'] must be a dict: parameter index to its state")
    if not all(isinstance(key, Hashable) for group in listed for key in group["params"]):
        raise TypeError("state_dict['param_groups']: 'params' must be the indices of parameters")
    for i, group in enumerate(listed):
        names = group.get("param_names")
        is_list = isinstance(names, (list, tuple)) and all(isinstance(x, str) for x in names)
        if names is not None and not (is_list and len(names) == len(group["params"])):
            raise ValueError(
                f"state_dict['param_groups'][{i}]['param_names'] must be a name for each of "
                f"{len(group['params'])} parameters, got {names!r:.80}"
            )


def _check_order(pairing: Pairing, saved: Sequence[Mapping[str, Any]]) -> None:
    """Refuse other parameters, or another order, where state is of all of them together."""
    before = [key for group in saved for key in group["params"]]
    now = [key for keys in pairing.keys for key in keys]
    if now != before:
        raise ValueError(
            "the state dict has the parameters in another order, or others, and the state is of "
            "all of them together: it can't be loaded in part"
        )


def _shape_problem(rule: Rule, param: Tensor, entry: Mapping[str, Any], label: str) -> str | None:
    """Say why what an entry has can't be read as state of this parameter; None if it can."""
    resized = (
        f", the parameter has {tuple(param.shape)}: the model differs from the one saved, or its "
        "parameters are in another order"
    )
    arrays: dict[str, tuple[int, ...] | None] = {
        name: slot.shape_for(param.shape)
        for name, slot in rule.slots.items()
        if entry.get(name) is not None and not slot.is_scalar
    }
    if any(str(key).startswith("param:") for key in entry):
        arrays["param"] = tuple(param.shape)
    for name, shape in arrays.items():
        if shape is not None:
            found = {**entry, "param": param}
            problem = column_problem(name, found, torch.Size(shape), label, resized, param)
            if problem is not None:
                return f"loaded {problem}"
    scalars = [name for name, slot in rule.slots.items() if slot.is_scalar and name in entry]
    for name in (*(["step"] * ("step" in entry)), *scalars):
        problem = number_problem(entry[name], param)
        if problem is not None:
            return f"loaded state {name!r} of {label} {problem}"
    return None
