"""Whether the tensors of one kernel are where they were, by one native call."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steprule.engines.native.audit import audit
from steprule.engines.native.contents_guard import ContentsGuard
from steprule.engines.native.loops import (
    address_of,
    is_native_enabled,
    items_of,
    native,
    process_words,
)
from steprule.engines.native.loops_text import GuardWord, Loop, TensorWord
from steprule.engines.native.switch import is_allowed, is_audited
from steprule.engines.native.tensor_layout import (
    half_word,
    has_plain_shape,
    tensor_layout,
    word,
)
from steprule.engines.native.wholes_guard import WholesGuard
from steprule.engines.whole_step import ANY, Outcome


@dataclass(frozen=True)
class Watched:
    """What is looked at: parameters and their state, or the parts here of sharded ones.

    Attributes:
        params: plain tensors with memory.
        states: their state: dicts of tensors that are plain and dense.
        names: the keys to guard; every dict has every one.
        owners: the sharded parameters that ``params`` are parts of; empty if they are none.
        entries: the dicts of the state that is sharded, of which ``states`` are the parts.
        parts: what of the state is sharded, each with its part here.
    """

    params: Sequence[Tensor]
    states: Sequence[dict[str, Any]]
    names: Sequence[str]
    owners: Sequence[Tensor] = ()
    entries: Sequence[dict[str, Any]] = ()
    parts: Sequence[tuple[Tensor, Tensor]] = ()


class NativeAddressGuard:
    """Remembers parameters' and state tensors' memory, sizes and strides, and what dicts held.

    Args:
        watched: such that :meth:`takes` holds.

    Attributes:
        block: the words that the loops read (:class:`~.loops_text.GuardWord`).
        addresses: of each gradient, 0 for none, as the last check found them; and behind them,
            how many there are.
    """

    def __init__(self, watched: Watched) -> None:
        params, names = watched.params, watched.names
        entries = watched.entries or watched.states
        self._params = tuple(params)
        self._owners = tuple(watched.owners) or self._params
        self._slots = [state[name] for state in watched.states for name in names]
        self._records = _records_of(self._params)
        self._slot_records = _records_of(self._slots)
        self._contents = ContentsGuard(
            [
                (entry, [(k, v if k in names else ANY) for k, v in entry.items()])
                for entry in (entries if names else [])
            ]
        )
        self._wholes = WholesGuard(watched.owners, watched.parts) if watched.owners else None
        self._likes = array("q", bytes(16 * len(self._params)))
        self._handles = array("q", bytes(8 * len(self._params)))
        self.addresses = array("q", bytes(8 * (len(self._params) + 1)))
        self.block = array("q", bytes(8 * len(GuardWord)))
        self.tell(
            {
                GuardWord.COUNT: len(self._params),
                GuardWord.PARAMS: items_of(self._owners),
                GuardWord.RECORDS: address_of(self._records),
                GuardWord.LIKES: address_of(self._likes),
                GuardWord.HANDLES: address_of(self._handles),
                GuardWord.FOUND: address_of(self.addresses),
                GuardWord.ENTRIES: self._contents.address,
                GuardWord.ENTRY_COUNT: self._contents.count,
                GuardWord.SLOTS: address_of(self._slot_records),
                GuardWord.SLOT_COUNT: len(self._slots),
            }
        )
        if self._wholes is not None:
            self.tell(self._wholes.words())
        self._outcome = array("q", [0])
        self._checks = self._turns = 0

    @staticmethod
    def takes(watched: Watched) -> bool:
        """Tell whether the loops can be used: tensors have small numbers of axes."""
        return (
            is_native_enabled()
            and all(type(entry) is dict for entry in (*watched.states, *watched.entries))
            and all(map(has_plain_shape, watched.params))
            and all(
                has_plain_shape(state[name]) for state in watched.states for name in watched.names
            )
            and all(map(_counts_natively, (*watched.params, *watched.owners)))
            and (not watched.owners or WholesGuard.takes(watched.owners, watched.parts))
        )

    def tell(self, words: Mapping[GuardWord, int]) -> None:
        """Write words of the block."""
        for place, value in words.items():
            self.block[place] = value

    def expect(self, grads: Sequence[Tensor | None], wholes: Sequence[Tensor | None]) -> None:
        """From now on take gradients like these, of the kind that the kernel reads where it is.

        None leaves what is expected of its parameter's gradient as it is: at first, nothing.

        Args:
            grads: the gradients, or their parts here.
            wholes: the gradients of sharded parameters; otherwise the same again.
        """
        if self._wholes is not None:
            self._wholes.expect(wholes)
        given = {i: grad for i, grad in enumerate(grads) if grad is not None}
        for (i, grad), fold in zip(given.items(), _folds_of(given.values()), strict=True):
            self._likes[2 * i] = fold
            self._likes[2 * i + 1] = int(grad.storage_offset()) * grad.element_size()

    def check(self, grads: tuple[Tensor | None, ...]) -> int:
        """Look at everything; on ``Outcome.AS_PLANNED`` :attr:`addresses` are the gradients'.

        Args:
            grads: the parameters' gradients (sharded ones, of sharded parameters); to be kept
                alive as long as addresses are used.

        Returns:
            An :class:`~.loops_text.Outcome`.
        """
        self.block[GuardWord.GIVEN] = items_of(grads)
        self._checks += 1
        if is_audited(self._checks) and not self.is_sound():
            return Outcome.CHANGED
        found = address_of(self._outcome)
        native()[Loop.CHECK](address_of(self.block), address_of(process_words()), found, 0)
        self.block[GuardWord.GIVEN] = 0
        return self._outcome[0]

    def hold(self) -> int:
        """Look at everything, and for the gradients in the parameters: no object is made for any.

        On ``Outcome.AS_PLANNED`` they are held until :meth:`let_go`; :attr:`addresses` are theirs.
        """
        self._checks += 1
        if is_audited(self._checks) and not self.is_sound():
            return Outcome.CHANGED
        self._call(Loop.HOLD)
        return self._outcome[0]

    def let_go(self) -> None:
        """Drop the gradients that :meth:`hold` has taken."""
        self._call(Loop.LET_GO_OF)

    def _call(self, loop: Loop) -> None:
        words = address_of(self.block), address_of(process_words()), address_of(self._outcome)
        native()[loop](*words, 0)

    def is_sound(self) -> bool:
        """Audit some tensors; False if the loops may not be relied on."""
        layout = tensor_layout()
        self._turns += 1
        return (
            is_allowed()
            and layout is not None
            and audit(layout, [*self._params, *self._slots], self._turns)
        )

    def bump_versions(self) -> None:
        """Let graphs that saved a parameter know of its change: those that had a gradient."""
        native()[Loop.BUMP](address_of(self.block), 0, 0, 0)


def _records_of(tensors: Sequence[Tensor]) -> array[int]:
    words = tensor_layout()
    assert words is not None
    records = array("q")
    for tensor, fold in zip(tensors, _folds_of(tensors), strict=True):
        storage = word(tensor._cdata + words.storage)
        record = {
            TensorWord.THING: id(tensor),
            TensorWord.CLASS: id(type(tensor)),
            TensorWord.IMPL: tensor._cdata,
            TensorWord.STORAGE: storage,
            TensorWord.DATA: tensor.untyped_storage().data_ptr(),
            TensorWord.OWNER: word(storage + words.data + 8),
            TensorWord.FOLD: fold,
            TensorWord.AUTOGRAD: word(tensor._cdata + words.autograd),
            TensorWord.COUNTER: word(tensor._cdata + words.counter),
        }
        records.extend(record[place] for place in TensorWord)
    return records


def _folds_of(tensors: Collection[Tensor]) -> array[int]:
    """Return the sizes, strides and kind of each tensor, folded into one word."""
    impls = array("q", [tensor._cdata for tensor in tensors])
    found = array("q", bytes(8 * len(impls)))
    native()[Loop.FOLDS](address_of(impls), len(impls), address_of(found), 0)
    return found


def _counts_natively(param: Tensor) -> bool:
    words = tensor_layout()
    assert words is not None
    counter = word(param._cdata + words.counter)
    return counter != 0 and half_word(counter + words.version) == param._version
