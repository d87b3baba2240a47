"""Random bits from a counter: the same on every engine, whatever the order or number of threads.

The 32 bits of an element are a hash of its index in the parameter (in the order of its axes) and a
key, and the key one of the seed, the parameter, the step and the array that is written. Nothing is
drawn from a generator, so that nothing has to be saved for a resumed run to have the same bits.

The hash of an element multiplies its index by 2**32 / golden ratio, as a Weyl sequence, and mixes
once, of which the upper bits are used: the cheapest that shows no structure in what it rounds. Keys
are mixed by MurmurHash3's finalizer (Appleby, 2011), so that the bits of an element at different
steps have nothing in common.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from steprule.distributed.regions import Region

_WEYL = 0x9E3779B9
_MULTIPLIER = 0x846CA68B
_MASK = 0xFFFFFFFF
# Elements that one key serves; the next ones have another.
_SPAN = 1 << 32


def param_key(seed: int, label: str) -> int:
    """Return the 32 bits that tell a parameter, named so, and a seed from others."""
    return zlib.crc32(label.encode()) ^ mixed(seed & _MASK) ^ mixed((seed >> 32) & _MASK, 1)


def array_key(key: int, step: int, array: int) -> int:
    """Return the 32 bits of one array of a parameter at one step.

    Args:
        key: the parameter's.
        step: the number of updates, this one included.
        array: 0 for the parameter, 1 for the rule's first slot…
    """
    return mixed(mixed(key, step), array)


def mixed(key: int, number: int = 0) -> int:
    """Return 32 bits that depend on all of a key's and a number's."""
    x = (key + number * _WEYL) & _MASK
    x = ((x ^ x >> 16) * 0x85EBCA6B) & _MASK
    x = ((x ^ x >> 13) * 0xC2B2AE35) & _MASK
    return x ^ x >> 16


def random_words(
    key: int, shape: torch.Size, device: torch.device, region: Region | None = None
) -> Tensor:
    """Return the random bits of the elements of a tensor, as int32: the upper ones are good.

    Args:
        key: of the array.
        shape: of the tensor.
        device: where the bits are to be.
        region: which elements of a larger whole the tensor has; None for all.
    """
    count = shape.numel()
    if region is not None:
        return _words_of(key, region.numbers(count, device)).view(shape)
    parts = []
    for start in range(0, max(count, 1), _SPAN):
        index = torch.arange(min(_SPAN, count - start), device=device).to(torch.int32)
        parts.append(_hashed(index.mul_(signed(_WEYL)).add_(signed(mixed(key, start // _SPAN)))))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


def _words_of(key: int, numbers: Tensor) -> Tensor:
    """Return the random bits of the elements with these numbers, int64."""
    words = numbers.to(torch.int32).mul_(signed(_WEYL))  # of a number, the lower 32 bits
    if numbers.numel():
        first, last = (int(edge) // _SPAN for edge in (numbers[0], numbers[-1]))
        for span in range(first, last + 1):
            of_span = numbers.div(_SPAN, rounding_mode="floor") == span if last > first else ...
            words[of_span] += signed(mixed(key, span))
    return _hashed(words)


def _hashed(x: Tensor) -> Tensor:
    return x.bitwise_xor_(shifted_right(x, 15)).mul_(signed(_MULTIPLIER))


def shifted_right(words: Tensor, by: int) -> Tensor:
    """Return words of 32 bits moved to the right, zeros coming in."""
    return (words >> by) & (_MASK >> by)


def signed(word: int) -> int:
    """Return 32 bits as an int32 has them."""
    return word - (1 << 32) if word >> 31 else word


# The same in the kernels' language.


def kernel_key(name: str, key: str, step: str, array: int, start: str) -> list[str]:
    """Return what gives ``name`` the key of an array's elements from element ``start`` on.

    Args:
        name: the variable.
        key: an expression for the parameter's key, an int64.
        step: one for the number of updates, an int64.
        array: as for :func:`array_key`.
        start: one for an int64.
    """
    return [
        *_kernel_mixed(name, f"int32({key})", f"int32({step})"),
        *_kernel_mixed(name, name, f"int32({array})"),
        *_kernel_mixed(name, name, f"int32({start} >> 32)"),
    ]


def _kernel_mixed(name: str, key: str, number: str) -> list[str]:
    return [
        f"{name} = {key} + {number} * {literal(_WEYL)}",
        f"{name} = ({name} ^ lshr({name}, int32(16))) * {literal(0x85EBCA6B)}",
        f"{name} = ({name} ^ lshr({name}, int32(13))) * {literal(0xC2B2AE35)}",
        f"{name} = {name} ^ lshr({name}, int32(16))",
    ]


def kernel_origin(name: str, index: str, key: str) -> str:
    """Return what gives ``name`` what hashes of elements from number ``index`` on start from."""
    return f"{name} = {index} * {literal(_WEYL)} + {key}"


def kernel_word(name: str, origin: str, index: str) -> list[str]:
    """Return what gives ``name`` the random bits of element ``index`` after an origin's."""
    return [
        f"{name} = {origin} + int32({index}) * {literal(_WEYL)}",
        f"{name} = ({name} ^ lshr({name}, int32(15))) * {literal(_MULTIPLIER)}",
    ]


def literal(word: int) -> str:
    """Return 32 bits as a constant of the kernels' language."""
    return f"int32({signed(word)})"
