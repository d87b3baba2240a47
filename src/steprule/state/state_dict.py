"""Optimizer state, written out in torch's format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

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
