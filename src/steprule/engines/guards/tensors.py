"""A guard on tensors' metadata: types, dtypes, sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

try:
    from torch._C._dynamo import guards
except ImportError:  # pragma: no cover  # a torch without its compiler
    guards = None  # type: ignore[assignment]


class TensorGuard:
    """Holds for tensors of the same types, dtypes, sizes and strides as those it was made of.

    torch's compiler has this check in C++; where this torch lacks it, Python compares.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._known: list[Any] = []
        make = getattr(guards, "TensorGuards", None)
        self._guard: Any = make and make(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        )
        if not make:
            self._known = [_metadata_of(t) for t in tensors]

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Tell whether each of ``tensors`` is like its counterpart; None is like nothing."""
        if self._guard is not None:
            return bool(self._guard.check(*tensors))
        return all(
            t is not None and not t.is_conj() and not t.is_neg() and _metadata_of(t) == known
            for t, known in zip(tensors, self._known, strict=True)
        )


def _metadata_of(tensor: Tensor) -> tuple[Any, ...]:
    is_strided = tensor.layout is torch.strided
    stride = tensor.stride() if is_strided else None
    return type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.shape, stride
