"""Optimizer state, written out and read back in torch's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from steprule.language.rule import Rule
from steprule.state.labels import label_of
from steprule.state.storing import column_problem

StateDict = dict[str, Any]


def packed_state(groups: Iterable[Mapping[str, Any]], state: Mapping[Any, Any]) -> StateDict:
    """Replace parameters in groups and state by their indices: torch's state dict."""
    index: dict[int, int] = {}
    packed_groups = []
    start = 0
    for group in groups:
        for i, param in enumerate(group["params"], start):
            index.setdefault(id(param), i)
        start += len(group["params"])
        packed = {key: value for key, value in group.items() if key != "params"}
        packed["params"] = [index[id(param)] for param in group["params"]]
        packed_groups.append(packed)
    packed_entries = {
        (index[id(key)] if isinstance(key, Tensor) else key): value for key, value in state.items()
    }
    return {"state": packed_entries, "param_groups": packed_groups}


class LoadPlan:
    """A state dict that has been checked against an optimizer: nothing is changed before commit.

    Args:
        groups: the optimizer's.
        rules: of each group, None for one without.
        state_dict: what is to be loaded.
        loaded_entry: makes of a parameter, its saved state and its group as it will be what is
            kept.
        merged: makes of a present group and its saved one what the group will be.

    Raises:
        TypeError: not a state dict.
        ValueError: other groups, other numbers of parameters, other shapes; the message names
            the parameter.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        rules: Sequence[Rule | None],
        state_dict: Mapping[str, Any],
        loaded_entry: Callable[[Tensor, Any, Mapping[str, Any]], Any],
        merged: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]],
    ) -> None:
        for key in ("state", "param_groups"):
            if not isinstance(state_dict, Mapping) or key not in state_dict:
                raise TypeError(
                    f"state_dict has no entry {key!r}: pass what an optimizer's state_dict() "
                    "returned (was this a model's, or a whole checkpoint?)"
                )
        listed = state_dict["param_groups"]
        is_list = isinstance(listed, (list, tuple))
        if not is_list or not all(isinstance(g, Mapping) and "params" in g for g in listed):
            raise TypeError("state_dict['param_groups'] must be a list of dicts with key 'params'")
        if not isinstance(state_dict["state"], Mapping):
            raise TypeError("state_dict['state'] must be a dict: parameter index to its state")
        self._groups = groups
        saved = deepcopy(state_dict["param_groups"])
        self._check_groups(saved)
        owners = {
            key: (param, group, i, position)
            for i, (group, saved_group) in enumerate(zip(groups, saved, strict=True))
            for position, (param, key) in enumerate(
                zip(group["params"], saved_group["params"], strict=True)
            )
        }
        self.groups = [
            {**merged(group, saved_group), "params": group["params"]}
            for group, saved_group in zip(groups, saved, strict=True)
        ]
        self.state: dict[Any, Any] = {}
        for key, entry in state_dict["state"].items():
            if key not in owners:
                self.state[key] = entry
                continue
            param, group, i, position = owners[key]
            _check_entry(rules[i], param, entry, label_of(group, i, position))
            self.state[param] = loaded_entry(param, entry, self.groups[i])

    def _check_groups(self, saved: list[dict[str, Any]]) -> None:
        if len(saved) != len(self._groups):
            raise ValueError(
                "loaded state dict has a different number of parameter groups: "
                f"{len(saved)}, the optimizer has {len(self._groups)}"
            )
        for i, (group, saved_group) in enumerate(zip(self._groups, saved, strict=True)):
            if len(saved_group["params"]) != len(group["params"]):
                raise ValueError(
                    "loaded state dict contains a parameter group that doesn't match the size of "
                    f"optimizer's group: group {i} has {len(saved_group['params'])} parameters "
                    f"in the state dict, {len(group['params'])} in the optimizer"
                )


def _check_entry(rule: Rule | None, param: Tensor, entry: Any, label: str) -> None:
    if rule is None:
        return
    if not isinstance(entry, Mapping):
        raise TypeError(f"loaded state of {label} must be a dict, got {entry!r}")
    resized = (
        f", the parameter has {tuple(param.shape)}: the model differs from the one saved, or its "
        "parameters are in another order"
    )
    arrays: dict[str, tuple[int, ...] | None] = {
        name: slot.shape_for(param.shape)
        for name, slot in rule.slots.items()
        if isinstance(entry.get(name), Tensor) and not slot.is_scalar
    }
    if any(str(key).startswith("param:") for key in entry):
        arrays["param"] = tuple(param.shape)
    for name, shape in arrays.items():
        if shape is not None:
            found = {**entry, "param": param}
            problem = column_problem(name, found, torch.Size(shape), label, resized)
            if problem is not None:
                raise ValueError(f"loaded {problem}")


def cast_state(param: Tensor, value: Any, key: str | None, flags: Mapping[str, Any]) -> Any:
    """Cast saved state to the parameter's device and dtype, as torch's optimizers do."""
    if isinstance(value, Tensor):
        if key == "step":
            if flags.get("capturable") or flags.get("fused"):
                return value.to(dtype=torch.float32, device=param.device)
            return value
        if param.is_floating_point():
            return value.to(dtype=param.dtype, device=param.device)
        return value.to(device=param.device)
    if isinstance(value, dict):
        return {k: cast_state(param, v, k, flags) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(cast_state(param, v, None, flags) for v in value)
    return value


def moved(value: Any, device: torch.device) -> Any:
    """State with its tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    return value
