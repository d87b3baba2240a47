"""Sharded tensors, for the native loops to see whether their parts are still the same.

A ``DTensor`` keeps its part here, and how it is spread, in two slots of its Python object. Where
these are is looked for in the tensors at hand, as torch's other words are (tensor_layout.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from steprule.engines.native.loops import address_of
from steprule.engines.native.loops_text import GuardWord
from steprule.engines.native.tensor_layout import words_at


class WholesGuard:
    """What the words of sharded tensors must hold.

    Args:
        owners: the parameters, of one class.
        parts: the state that is sharded, each with its part here.
    """

    def __init__(self, owners: Sequence[Any], parts: Sequence[tuple[Any, Tensor]]) -> None:
        self._class = type(owners[0])
        places = _places_in(owners[0])
        assert places is not None
        self._local, self._spec = places
        # What has these addresses is kept alive, so that nothing else can have them.
        self._held: list[Any] = [*owners, *parts]
        pairs: list[int] = []
        for owner in owners:
            self._held += [owner._local_tensor, owner._spec]
            pairs += [id(owner) + self._local, id(owner._local_tensor)]
            pairs += [id(owner) + self._spec, id(owner._spec)]
        for whole, part in parts:
            pairs += [id(whole) + self._local, id(part)]
        self._pairs = array("q", pairs)
        self._specs = array("q", [id(owner._spec) for owner in owners])
        self._expected: list[Any] = [owner._spec for owner in owners]

    @staticmethod
    def takes(owners: Iterable[Any], parts: Iterable[tuple[Any, Tensor]]) -> bool:
        """Tell whether all keep their parts in the same places."""
        wholes = [*owners, *(whole for whole, _ in parts)]
        places = {_places_in(whole) for whole in wholes}
        return len(places) == 1 and None not in places and len({*map(type, wholes)}) == 1

    def words(self) -> Mapping[GuardWord, int]:
        """Return what a guard's block says of them."""
        return {
            GuardWord.SPECS: address_of(self._specs),
            GuardWord.DTENSOR: id(self._class),
            GuardWord.LOCAL_PLACE: self._local,
            GuardWord.SPEC_PLACE: self._spec,
            GuardWord.WHOLES: address_of(self._pairs),
            GuardWord.WHOLE_COUNT: len(self._pairs) // 2,
        }

    def expect(self, grads: Sequence[Any]) -> None:
        """From now on take gradients that are spread as these are, of those that are there."""
        for i, grad in enumerate(grads):
            if grad is not None and type(grad) is self._class:
                self._expected[i] = grad._spec
                self._specs[i] = id(grad._spec)


def _places_in(whole: Any) -> tuple[int, int] | None:
    """Return how far from an object's address its part and its spec are; None if that is unclear.

    A class without slots of its own keeps them in a dict.
    """
    kind = type(whole)
    words = words_at(id(whole), kind.__basicsize__ // 8)
    found = [
        [i for i, x in enumerate(words) if x == id(y)] for y in (whole._local_tensor, whole._spec)
    ]
    if any(len(places) != 1 for places in found):
        return None
    return 8 * found[0][0], 8 * found[1][0]
