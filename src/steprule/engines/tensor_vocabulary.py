"""The operations of :mod:`steprule.ops` on tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steprule import ops


class TensorVocabulary(threading.local):
    """The operations of :mod:`steprule.ops` on tensors.

    ``dtype`` is that of the computation under way on this thread: a choice between two plain
    numbers needs it (torch would take its default dtype). ``ask`` turns what one parameter adds to
    a reduction over several into their total; if it ``is_sharded``, to any reduction.
    """

    dtype = torch.float32
    ask: Callable[[Tensor], Any] | None = None
    is_sharded = False
    sqrt = staticmethod(torch.sqrt)
    exp = staticmethod(torch.exp)
    expm1 = staticmethod(torch.expm1)
    log = staticmethod(torch.log)
    log1p = staticmethod(torch.log1p)
    tanh = staticmethod(torch.tanh)
    floor = staticmethod(torch.floor)
    sign = staticmethod(torch.sign)

    def maximum(self, a: Any, b: Any) -> Tensor:
        """Return the larger; a plain number takes the dtype of the tensor."""
        return torch.maximum(*self._tensors(a, b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        """Return the smaller; a plain number takes the dtype of the tensor."""
        return torch.minimum(*self._tensors(a, b))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """Return ``a`` or ``b`` by a condition: truth values, or numbers that are not 0."""
        if not isinstance(condition, Tensor):
            return a if condition else b
        if condition.dtype is not torch.bool:
            condition = condition != 0
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return torch.where(condition, *self._tensors(a, b))
        chosen = [torch.full((), x, dtype=self.dtype, device=condition.device) for x in (a, b)]
        return torch.where(condition, *chosen)

    def lerp(self, a: Any, b: Any, weight: Any) -> Any:
        """torch's own, whose rounding its optimizers have, wherever it takes the operands."""
        plain = isinstance(a, Tensor) and isinstance(b, Tensor) and not isinstance(weight, Tensor)
        return torch.lerp(a, b, weight) if plain else a + weight * (b - a)

    def sum_of(self, x: Tensor, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        """Return the sum in float64."""
        if axis is not None:
            return self._shared(x.sum(dim=axis, keepdim=True), over)
        return self._shared(x.sum(dtype=wide_dtype(x)), over)

    def mean_of(self, x: Tensor, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        """Return the mean in float64; 0 of nothing."""
        if axis is not None:
            total = self.sum_of(x, over, axis)
            return total if self._is_shared(over) else total / max(x.shape[axis], 1)
        total = x.sum(dtype=wide_dtype(x))
        return self._shared(total, over) if self._is_shared(over) else total / max(x.numel(), 1)

    def max_of(self, x: Tensor, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        """Return the largest absolute value in float64; 0 of nothing."""
        wide = x.abs() if x.dtype is not torch.bool else x
        if axis is not None:
            if not x.shape[axis]:
                wide = torch.nn.functional.pad(wide, (0, 1) if axis == -1 else (0, 0, 0, 1))
            return wide.amax(dim=axis, keepdim=True)
        largest = (wide.amax() if x.numel() else wide.sum()).to(wide_dtype(x))
        return self._shared(largest, over)

    def norm_of(self, x: Tensor, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        """Return the 2-norm in float64."""
        if self._is_shared(over) or axis is not None:
            return torch.sqrt(self.dot_of(x, x, over, axis))
        number = x.to(wide_dtype(x)) if x.dtype is torch.bool else x
        norm: Tensor = torch.linalg.vector_norm(number, dtype=wide_dtype(x))
        return norm

    def dot_of(self, x: Any, y: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        """Return the dot product in float64; one of the two may be a number."""
        if axis is not None:
            return self.sum_of(x * y, over, axis)
        like = x if isinstance(x, Tensor) else y
        wide = wide_dtype(like)
        x, y = (t.to(wide) if isinstance(t, Tensor) else t for t in (x, y))
        return self._shared(torch.as_tensor(x * y).sum(), over)

    def _is_shared(self, over: ops.Over) -> bool:
        return over != "param" or self.is_sharded

    def _shared(self, own: Tensor, over: ops.Over) -> Any:
        """Return a reduction of one parameter as what several have in common, or processes."""
        if not self._is_shared(over):
            return own
        if self.ask is None:
            raise TypeError(
                f"over={over!r} is for rules on elements: this one works on whole tensors"
            )
        return self.ask(own)

    def _tensors(self, a: Any, b: Any) -> list[Tensor]:
        """Return both as tensors of numbers: truth values are 1 or 0."""
        like = a if isinstance(a, Tensor) else b
        dtype = self.dtype if like.dtype is torch.bool else like.dtype
        return [
            (x.to(dtype) if x.dtype is torch.bool else x)
            if isinstance(x, Tensor)
            else torch.full((), x, dtype=dtype, device=like.device)  # made there, not sent
            for x in (a, b)
        ]


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that sums of this tensor are taken in: float64, where its device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


VOCABULARY = TensorVocabulary()
ops.register_vocabulary(Tensor, VOCABULARY)
