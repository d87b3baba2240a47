"""Blocks of numbers with a few bits each: a sign, an exponent and a mantissa under one scale.

Floats keep relative precision over many orders of magnitude, and are taken out of float32 by
integer operations alone: the scale of a block is a power of two. They are rounded at random: with
beta2 = 0.999 a step changes a running average by less than half the gap between two codes, and
rounding to nearest would leave it where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from steprule.formats import Column
from steprule.formats.random_bits import kernel_word, literal, shifted_right
from steprule.formats.stochastic import INFINITY, MAGNITUDE

# Elements that share a scale.
BLOCK = 128
_ONE_EXPONENT = 1 << 23  # what one more is in float32's bits
# The smallest exponent of a block: all of its codes are then normal numbers of float32.
_LEAST = 34
# Scales from here on are of blocks with a number that is not finite. Their exponents are coarser.
_SPECIAL = 222


@dataclass(frozen=True)
class MiniFloat:
    """Codes of ``bits`` bits, ``mantissa`` of them a mantissa, and a byte of scale for each block.

    A code of exponent e and mantissa m is ``2**(e - top) * (1 + m / 2**mantissa)`` times the
    block's power of two, and of exponent 0 ``2**(1 - top) * m / 2**mantissa``. A code that is
    signed has a sign bit; one that is not never becomes 0 where the number was not: a denominator
    must not vanish before its numerator does.

    Infinity and nan have codes of their own (with 4 bits one for both, read as nan), so that no
    other element of the block is lost with them.
    """

    bits: int
    mantissa: int
    is_signed: bool
    block = BLOCK
    is_random = True

    @property
    def name(self) -> str:
        """``int8``, or ``uint8`` without a sign."""
        return f"{'' if self.is_signed else 'u'}int{self.bits}"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Codes, and one scale a block."""
        scales = Column(self.name, torch.uint8, BLOCK)
        return Column("", torch.uint8, 8 // self.bits), scales

    @property
    def _magnitudes(self) -> int:
        """The bits of a code without its sign, all set."""
        return (1 << (self.bits - self.is_signed)) - 1

    @property
    def _sign(self) -> int:
        """The bit of the sign; 0 without one."""
        return 1 << (self.bits - 1) if self.is_signed else 0

    @property
    def _infinity(self) -> int | None:
        """The magnitude that is infinity; None if there is none."""
        if self.bits < 8:
            return None
        return self._magnitudes if self.is_signed else self._magnitudes - 1

    @property
    def _nan(self) -> int:
        """The code that is nan: that of minus zero, which is not needed, where there is a sign."""
        return self._sign or self._magnitudes

    @property
    def _most(self) -> int:
        """The largest magnitude that is a finite number."""
        most = self._magnitudes if self._infinity is None else self._infinity - 1
        return most if self.is_signed or self.bits == 8 else most - 1

    @property
    def _top(self) -> int:
        """The exponent of the largest code."""
        return self._most >> self.mantissa

    @property
    def _shift(self) -> int:
        """How far a code's mantissa is from float32's end."""
        return 23 - self.mantissa

    @property
    def _carry(self) -> int:
        """What is added to the bits of a block's largest number, so that it keeps within codes.

        Rounded up it must not exceed the largest code.
        """
        codes_above = ((self._top + 1) << self.mantissa) - self._most
        return (codes_above << self._shift) - 1

    # Tensors

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the numbers."""
        codes = _unpacked(columns[0], shape.numel()) if self.bits == 4 else columns[0].reshape(-1)
        return self._decoded(codes, columns[1]).to(compute).view(shape)

    def _decoded(self, codes: Tensor, scales: Tensor) -> Tensor:
        count = codes.numel()
        blocks = pad(codes.to(torch.int32), (0, -count % BLOCK)).view(-1, BLOCK)
        exponents = _exponents(scales.to(torch.int32)).view(-1, 1)
        magnitude = blocks & self._magnitudes
        least = (exponents - (self._top - 1)) << 23
        moved = magnitude << self._shift
        is_small = magnitude < (1 << self.mantissa)
        small = (moved + least).view(torch.float32) - least.view(torch.float32)
        number = torch.where(is_small, small, (moved + least - _ONE_EXPONENT).view(torch.float32))
        is_special = scales.view(-1, 1) >= _SPECIAL
        if self._infinity is not None:
            number = torch.where(is_special & (magnitude == self._infinity), torch.inf, number)
        if self.is_signed:
            number = torch.where((blocks & self._sign) != 0, -number, number)
        number = torch.where(is_special & (blocks == self._nan), torch.nan, number)
        return number.view(-1)[:count]

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Encode ``value``: up or down by its random bits, to nearest without any."""
        count = value.numel()
        flat = value.to(torch.float32).reshape(-1)
        bits = pad(flat, (0, -count % BLOCK)).view(torch.int32).view(-1, BLOCK)
        magnitude = bits & MAGNITUDE
        # Below the normal range numbers count as zero, as in the kernel.
        magnitude = torch.where(magnitude < _ONE_EXPONENT, 0, magnitude)
        is_finite = magnitude < INFINITY
        is_special = ~is_finite.all(dim=1, keepdim=True)
        largest = torch.where(is_finite, magnitude, 0).amax(dim=1, keepdim=True)
        exponents = ((largest + self._carry) >> 23).clamp_min(_LEAST)
        scales = torch.where(is_special, (exponents + 7 >> 3) + _SPECIAL - 5, exponents - _LEAST)
        exponents = _exponents(scales)
        least = (exponents - (self._top - 1)) << 23
        small = (magnitude.view(torch.float32) + least.view(torch.float32)).view(torch.int32)
        chosen = torch.where(magnitude < least, small - _ONE_EXPONENT, magnitude)
        if words is None:
            random: Tensor | int = 1 << (self._shift - 1)
        else:
            padded = pad(words.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK)
            random = shifted_right(padded, 32 - self._shift)
        base = (exponents - self._top) << self.mantissa
        codes = (chosen + random >> self._shift) - base
        if not self.is_signed:
            codes = torch.maximum(codes, magnitude.clamp_max(1))
        if self._infinity is not None:
            codes = torch.where(magnitude == INFINITY, self._infinity, codes)
        if self.is_signed:
            # Minus zero is nan where there may be one.
            has_sign = (bits < 0) & ((codes != 0) | ~is_special)
            codes = torch.where(has_sign, codes | self._sign, codes)
        is_nan = magnitude > INFINITY if self._infinity is not None else ~is_finite
        codes = torch.where(is_nan, self._nan, codes).view(-1)[:count].to(torch.uint8)
        packed = _packed(codes) if self.bits == 4 else codes
        columns[0].copy_(packed.view(columns[0].shape))
        columns[1].copy_(scales.view(-1))

    # The kernels' language

    def kernel_read(self, addresses: Sequence[str], index: str) -> str:
        """Refuse: elements are read in blocks."""
        raise TypeError(f"{self.name} has blocks")

    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]:
        """Refuse: elements are written in blocks."""
        raise TypeError(f"{self.name} has blocks")

    def kernel_read_block(
        self, name: str, addresses: Sequence[str], count: str, room: str
    ) -> list[str]:
        """Return what decodes a block into ``room``."""
        codes, scales = addresses
        return [
            f"scale = load_uint8({scales}, first >> 7)",
            f"if scale < {_int(_SPECIAL)}:",
            *self._decoding_loop(name, codes, count, room, is_special=False),
            "else:",
            *self._decoding_loop(name, codes, count, room, is_special=True),
        ]

    def _decoding_loop(
        self, name: str, codes: str, count: str, room: str, *, is_special: bool
    ) -> list[str]:
        lines = [
            f"exponent = {_exponent_text('scale', is_special)}",
            f"{name}_bits = exponent - {_int(self._top - 1)} << {_int(23)}",
            f"{name}_least = float_of({name}_bits)",
            f"{name}_base = {name}_bits - {_int(_ONE_EXPONENT)}",
        ]
        loop = f"for i in independent({_items(count, self.bits)}):"
        if self.bits == 8:
            body = [
                f"code = load_uint8({codes} + first, i)",
                *self._decoding(name, is_special),
                f"store_float32({room}, i, number)",
            ]
        else:
            body = [
                f"byte = load_uint8({codes} + (first >> 1), i)",
                "code = byte & int32(15)",
                *self._decoding(name, is_special),
                f"store_float32({room}, i, number)",
                "code = lshr(byte, int32(4))",
                *self._decoding(name, is_special),
                f"store_float32({room}, i + {_items(count, 4)}, number)",
            ]
        return [f"    {line}" for line in (*lines, loop, *(f"    {line}" for line in body))]

    def _decoding(self, name: str, is_special: bool) -> list[str]:
        """Return what makes ``number`` of ``code``."""
        lines = [
            f"magnitude = code & {_int(self._magnitudes)}",
            f"moved = magnitude << {_int(self._shift)}",
            f"small = float_of(moved + {name}_bits) - {name}_least",
            f"number = (small if magnitude < {_int(1 << self.mantissa)}"
            f" else float_of(moved + {name}_base))",
        ]
        if is_special and self._infinity is not None:
            lines.append(
                f"number = (float32(inf) if magnitude == {_int(self._infinity)} else number)"
            )
        if self.is_signed:
            sign = f"(code & {_int(self._sign)}) << {_int(32 - self.bits)}"
            lines.append(f"number = float_of(bits_of(number) | ({sign}))")
        if is_special:
            lines.append(f"number = (float32(nan) if code == {_int(self._nan)} else number)")
        return lines

    def kernel_write_block(
        self, name: str, addresses: Sequence[str], count: str, room: str, key: str
    ) -> list[str]:
        """Return what encodes a block from ``room``."""
        codes, scales = addresses
        magnitude = f"bits_of(load_float32({room}, i)) & {literal(MAGNITUDE)}"
        lines = []
        if self.bits == 4 and count != str(BLOCK):  # the last byte may hold one code too many
            lines.append(f"store_float32({room}, {count}, float32(0.0))")
        return [
            *lines,
            "most = int32(0)",
            f"for i in independent({count}):",
            f"    most = largest(most, {magnitude})",
            f"if most < {literal(INFINITY)}:",
            f"    exponent = {self._exponent_of_most()}",
            f"    store_uint8({scales}, first >> 7, exponent - {_int(_LEAST)})",
            *self._encoding_loop(name, codes, count, room, key, is_special=False),
            "else:",
            "    most = int32(0)",
            f"    for i in independent({count}):",
            f"        magnitude = {magnitude}",
            f"        finite = (magnitude if magnitude < {literal(INFINITY)} else int32(0))",
            "        most = largest(most, finite)",
            f"    exponent = {self._exponent_of_most()}",
            f"    scale = lshr(exponent + int32(7), int32(3)) + {_int(_SPECIAL - 5)}",
            f"    store_uint8({scales}, first >> 7, scale)",
            f"    exponent = {_exponent_text('scale', is_special=True)}",
            *self._encoding_loop(name, codes, count, room, key, is_special=True),
        ]

    def _exponent_of_most(self) -> str:
        """Return an expression for the exponent of a block by its largest finite magnitude."""
        return f"largest(lshr(most + {_int(self._carry)}, {_int(23)}), {_int(_LEAST)})"

    def _encoding_loop(
        self, name: str, codes: str, count: str, room: str, key: str, *, is_special: bool
    ) -> list[str]:
        lines = [
            f"{name}_bits = exponent - {_int(self._top - 1)} << {_int(23)}",
            f"{name}_least = float_of({name}_bits)",
            f"{name}_base = exponent - {_int(self._top)} << {_int(self.mantissa)}",
        ]
        loop = f"for i in independent({_items(count, self.bits)}):"
        if self.bits == 8:
            body = [
                *self._encoding(name, room, "i", key, is_special),
                f"store_uint8({codes} + first, i, code)",
            ]
        else:
            body = [
                *self._encoding(name, room, "i", key, is_special),
                "lower = code",
                *self._encoding(name, room, f"i + {_items(count, 4)}", key, is_special),
                f"store_uint8({codes} + (first >> 1), i, lower | (code << int32(4)))",
            ]
        return [f"    {line}" for line in (*lines, loop, *(f"    {line}" for line in body))]

    def _encoding(self, name: str, room: str, index: str, key: str, is_special: bool) -> list[str]:
        """Return what makes ``code`` of an element of ``room``."""
        lines = [
            *kernel_word("word", f"(origin + int32({index}))", key),
            f"bits = bits_of(load_float32({room}, {index}))",
            f"magnitude = bits & {literal(MAGNITUDE)}",
            f"small_bits = bits_of(float_of(magnitude) + {name}_least) - {_int(_ONE_EXPONENT)}",
            f"chosen = (small_bits if magnitude < {name}_bits else magnitude)",
            f"code = lshr(chosen + lshr(word, {_int(32 - self._shift)}), {_int(self._shift)})",
            f"code = code - {name}_base",
        ]
        if not self.is_signed:
            lines.append("code = largest(code, (int32(1) if magnitude != int32(0) else int32(0)))")
        if is_special and self._infinity is not None:
            lines.append(
                f"code = ({_int(self._infinity)} if magnitude == {literal(INFINITY)} else code)"
            )
        if self.is_signed:
            sign = f"lshr(bits, {_int(32 - self.bits)}) & {_int(self._sign)}"
            if is_special:  # minus zero is nan there
                sign = f"(({sign}) if code != int32(0) else int32(0))"
            lines.append(f"code = code | ({sign})")
        if is_special:
            comparison = ">" if self._infinity is not None else ">="
            is_nan = f"magnitude {comparison} {literal(INFINITY)}"
            lines.append(f"code = ({_int(self._nan)} if {is_nan} else code)")
        return lines


def _int(x: int) -> str:
    return f"int32({x})"


def _items(count: str, bits: int) -> str:
    """Return how many items of codes so many elements of one block take."""
    if bits == 8:
        return count
    return str(-(-int(count) // 2)) if count.isdigit() else f"({count} + 1 >> 1)"


def _exponent_text(scale: str, is_special: bool) -> str:
    if not is_special:
        return f"{scale} + {_int(_LEAST)}"
    exponent = f"{scale} - {_int(_SPECIAL - 5)} << int32(3)"
    return f"({exponent} if {scale} < {_int(_SPECIAL + 27)} else int32(255))"


def _exponents(scales: Tensor) -> Tensor:
    """Return the exponents (float32's) that the largest codes of blocks have."""
    special = ((scales - (_SPECIAL - 5)) << 3).clamp_max(255)
    return torch.where(scales < _SPECIAL, scales + _LEAST, special)


def _packed(codes: Tensor) -> Tensor:
    """Return codes of 4 bits by two: those of a block's first half, and above them the second's."""
    blocks, rest = _parts(codes)
    halves = [blocks[:, : BLOCK // 2], rest[: -(-rest.numel() // 2)]]
    others = [blocks[:, BLOCK // 2 :], pad(rest[halves[1].numel() :], (0, rest.numel() % 2))]
    return torch.cat([(a | b << 4).reshape(-1) for a, b in zip(halves, others, strict=True)])


def _unpacked(items: Tensor, count: int) -> Tensor:
    """Return so many codes, one each."""
    whole = count // BLOCK * (BLOCK // 2)
    parts = items[:whole].view(-1, BLOCK // 2), items[whole:].view(1, -1)
    found = [torch.cat([part & 15, part >> 4], dim=1).reshape(-1) for part in parts]
    return torch.cat(found)[:count]


def _parts(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole blocks, and what is left over."""
    whole = codes.numel() // BLOCK * BLOCK
    return codes[:whole].view(-1, BLOCK), codes[whole:]
