"""The addresses of many gradients by one native loop, and that parameters are as planned."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from steprule.engines.native_checks import Native, is_native, items_of, native
from steprule.engines.tensor_words import half_word, has_plain_shape, tensor_words, word
from steprule.engines.unmoved import folds_of


class Gradients:
    """Finds the gradients of ``params``, as long as they are like ``grads``.

    Args:
        params: plain tensors.
        grads: a gradient for each, of the kind that the kernel reads where it is.
    """

    def __init__(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        words = tensor_words()
        assert words is not None
        self._tensors = tuple(params)
        self._records = array("q")
        folds = zip(folds_of(params), folds_of(grads), strict=True)
        for param, grad, (param_fold, grad_fold) in zip(params, grads, folds, strict=True):
            start = int(grad.storage_offset()) * grad.element_size()
            memory = param.untyped_storage().data_ptr()
            self._records.extend((memory, param_fold, grad_fold, start))
        self._control = array("q", [items_of(self._tensors), 0, id(None)])
        self._counts_natively = all(
            half_word(word(p._cdata + words.counter) + words.version) == p._version for p in params
        )
        count = len(params)
        self._found = array("q", bytes(8 * (count + 2)))
        self._count = count

    @staticmethod
    def can_find(params: Sequence[Tensor], grads: Sequence[Tensor]) -> bool:
        """Whether the loop can be used: small numbers of axes, no empty tensors."""
        return is_native() and all(
            has_plain_shape(tensor) and tensor.numel() for tensor in (*params, *grads)
        )

    def find(self, grads: tuple[Tensor | None, ...]) -> array[int] | None:
        """The address of each gradient, 0 for none; behind them, how many there are.

        Args:
            grads: the parameters' gradients; to be kept alive as long as the addresses are used.

        Returns:
            None if a parameter moved, or a gradient is unlike those it was made of.
        """
        self._control[1] = items_of(grads)
        native()[Native.GRADS](
            self._control.buffer_info()[0],
            self._records.buffer_info()[0],
            self._found.buffer_info()[0],
            self._count,
            0,
        )
        return None if self._found[self._count + 1] else self._found

    def bump_versions(self) -> None:
        """Let graphs that saved a parameter know of its change: those that had a gradient."""
        if self._counts_natively:
            found = self._found.buffer_info()[0]
            native()[Native.BUMP](items_of(self._tensors), found, self._count, 0, 0)
        else:
            pairs = zip(self._tensors, self._found, strict=False)
            torch.autograd.graph.increment_version([p for p, where in pairs if where])
