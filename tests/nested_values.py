"""Nested values of tensors and numbers, compared bit for bit."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch


def same(one: Any, other: Any) -> bool:
    """Tell whether two nested values are alike, to the last bit and type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        plain = [x.resolve_conj().resolve_neg().contiguous() for x in (one, other)]
        raw = [x.reshape(-1).view(torch.uint8) for x in plain]
        return one.dtype is other.dtype and one.shape == other.shape and torch.equal(*raw)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(same(k, m) and same(x, y) for (k, x), (m, y) in pairs)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other) or one != one != other
    return bool(one == other)
