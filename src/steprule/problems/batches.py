"""Batches as those who share them get them: containers copied, tensors looked at for changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def with_own_containers(batch: Any) -> Any:
    """Return the batch with copies of all but its tensors: lists, dicts, tuples, arrays."""
    return _mapped(batch, _copied_array)


def with_own_tensors(batch: Any) -> Any:
    """Return the batch with copies of its tensors and arrays too: whose buffer is filled anew."""
    return _mapped(batch, _copied)


def versions_of(batch: Any) -> list[int]:
    """Return how often each tensor of a batch has been changed in place."""
    return [tensor._version for tensor in _tensors_of(batch) if not tensor.is_inference()]


def _mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple):
        parts = [_mapped(part, leaf) for part in value]
        make = getattr(type(value), "_make", None)  # of a named tuple
        return type(value)(parts) if make is None else make(parts)
    if isinstance(value, list):
        return [_mapped(part, leaf) for part in value]
    if isinstance(value, MutableMapping):
        mine: Any = copy.copy(value)
        for key, part in value.items():
            mine[key] = _mapped(part, leaf)
        return mine
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        mine = copy.copy(value)
        for name, part in _fields(value).items():
            object.__setattr__(mine, name, _mapped(part, leaf))
        return mine
    return leaf(value)


def _fields(value: Any) -> dict[str, Any]:
    return {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return _copied_array(value)


def _copied_array(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors_of(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors_of(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _tensors_of(_fields(value))
