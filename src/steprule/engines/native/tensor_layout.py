"""Where torch keeps what in a tensor's own memory: looked for in known tensors, never assumed.

A step's checks look at every parameter, state tensor and gradient. Asking for each through Python
takes 50 to 200 ns, which for a thousand small tensors is as long as the update; reading the words
takes 5. What is read is only compared with what the same words held when the plan was made, and
addresses are taken only from tensors whose words are the same, so a torch that keeps things
elsewhere is either understood by the search below or left to the plain calls.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

# Sizes and strides of so many axes are kept in the tensor; of more, their address.
INLINE_AXES = 5
# Words from the number of axes to the last one: sizes, strides, and four more.
SHAPE_WORDS = 1 + 2 * INLINE_AXES + 4
# What the word of dtype and flags tells: dtype and device. Of the flags behind them, some are never
# set to anything.
TOLD = (1 << 40) - 1
# Words up to the last of those, fewest first: torch 2.10 and later have 22, those before 23 or
# more. No more are read than are needed to find it.
_TENSOR_WORDS = (22, 23, 24)
# Nor what autograd keeps of it.
_AUTOGRAD_WORDS = 8


@dataclass(frozen=True)
class TensorLayout:
    """Offsets in bytes.

    Attributes:
        tensor: of the tensor's own address in the Python object.
        shape: of the number of axes; sizes, strides, the offset into the storage, the number of
            elements, the dtype with flags, and the kinds of tensor it is, follow.
        storage: of the storage's address.
        data: of the data's address in a storage; what owns the data follows.
        object: of the Python object's address, 0 where there is none.
        autograd: of the address of what autograd keeps of a tensor, 0 if it keeps nothing.
        grad: of the gradient's own address there.
        undefined: what stands there where there is no gradient.
        counter: of the address of what counts in-place changes.
        version: of the count there.
    """

    tensor: int
    shape: int
    storage: int
    data: int
    object: int
    autograd: int
    grad: int
    undefined: int
    counter: int
    version: int


@functools.cache
def tensor_layout() -> TensorLayout | None:
    """Return the offsets; None if anything is not found, or is not what it should be."""
    with torch.inference_mode(False):
        layouts = map(_layout_within, _TENSOR_WORDS)
        return next((layout for layout in layouts if layout is not None), None)


def _layout_within(count: int) -> TensorLayout | None:
    """Return the offsets, if all that they lead to is within so many words of a tensor."""
    base = torch.zeros(200, dtype=torch.float32, device="cpu")
    probe = base.as_strided((2, 3, 5), (31, 7, 1), 6)
    words = words_at(probe._cdata, count)
    shape = _shape_of(words)
    storage = _place(words, probe.untyped_storage()._cdata)
    tensor = _place(words_at(id(probe), torch._C.TensorBase.__basicsize__ // 8), probe._cdata)
    if shape is None or storage is None or tensor is None:
        return None
    data = _place(words_at(words[storage], 4), base.data_ptr())
    counter = _counter_of(shape)
    grad = _grad_of(base, range(storage + 1, shape))
    thing = _place(words, id(probe))
    if data is None or thing is None or counter is None or grad is None:
        return None
    if not _tells_kinds(base, shape):
        return None
    return TensorLayout(
        tensor=8 * tensor,
        shape=8 * shape,
        storage=8 * storage,
        data=8 * data,
        object=8 * thing,
        autograd=8 * grad[0],
        grad=8 * grad[1],
        undefined=grad[2],
        counter=8 * counter[0],
        version=8 * counter[1],
    )


def _shape_of(words: list[int]) -> int | None:
    known = [3, 2, 3, 5, 0, 0, 31, 7, 1, 0, 0, 6, 30]
    for i in range(len(words) - SHAPE_WORDS + 1):
        if words[i : i + len(known)] == known:
            return i
    return None


def _tells_kinds(base: Tensor, shape: int) -> bool:
    """Tell whether the last two words tell apart dtypes, devices and lazy views."""
    plain = torch.zeros(2, dtype=torch.complex64, device="cpu")
    others = [base[:2], base[:2].double(), plain.conj(), torch.empty(2, device="meta")]
    last = shape + SHAPE_WORDS - 2
    words = [words_at(x._cdata, last + 2)[last:] for x in (plain, *others)]
    return len({(kind & TOLD, keys) for kind, keys in words}) == len(words)


def _counter_of(shape: int) -> tuple[int, int] | None:
    """Word of the counter in a tensor, and of the version in a counter."""
    tensors = [torch.zeros(2, device="cpu") for _ in range(2)]
    found = []
    for tensor, changes in zip(tensors, (71, 113), strict=True):
        for _ in range(changes):
            torch.autograd.graph.increment_version([tensor])
        words = words_at(tensor._cdata, shape)
        places = [(i, x) for i, x in enumerate(words) if i > 1 and may_be_address(x)]
        # Behind its class: how often it is held, in one word or two, then the count.
        found.append(
            {(i, k) for i, x in places for k in range(1, 4) if half_word(x + 8 * k) == changes}
        )
    both = found[0] & found[1]
    return both.pop() if len(both) == 1 else None


def _grad_of(base: Tensor, places: range) -> tuple[int, int, int] | None:
    """Word of autograd's part in a tensor, word of the gradient there, and what none looks like."""
    given, bare = torch.nn.Parameter(base), torch.nn.Parameter(base)
    given.grad = torch.ones_like(base)
    with_grad, without, plain = (words_at(x._cdata, places.stop) for x in (given, bare, base))
    for place in places:
        # A plain tensor has none; a parameter has one of its own.
        others = {with_grad[place], without[place]}
        if plain[place] == 0 and len(others) == 2 and all(map(may_be_address, others)):
            grad = _place(words_at(with_grad[place], _AUTOGRAD_WORDS), given.grad._cdata)
            if grad is not None:
                undefined = words_at(without[place], _AUTOGRAD_WORDS)[grad]
                return (place, grad, undefined) if may_be_address(undefined) else None
    return None


def may_be_address(x: int) -> bool:
    """Tell whether a word looks like the address of an object."""
    return 1 << 16 <= x < 1 << 47 and x % 8 == 0


def _place(words: list[int], wanted: int) -> int | None:
    return words.index(wanted) if wanted in words else None


def words_at(address: int, count: int) -> list[int]:
    """Return so many words from an address on."""
    return list((ctypes.c_int64 * count).from_address(address))


def word(address: int) -> int:
    """Return the word at an address."""
    return ctypes.c_int64.from_address(address).value


def half_word(address: int) -> int:
    """Return the 32 bits at an address."""
    return ctypes.c_uint32.from_address(address).value


def has_plain_shape(tensor: Tensor) -> bool:
    """Tell whether the words tell the tensor's sizes."""
    return tensor.dim() <= INLINE_AXES
