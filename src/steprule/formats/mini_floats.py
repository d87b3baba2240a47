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
from steprule.formats.random_bits import literal, shifted_right
from steprule.formats.stochastic import INFINITY, MAGNITUDE

# Elements that share a scale.
BLOCK = 128
_ONE_EXPONENT = 1 << 23  # what one more is in float32's bits
# The smallest exponent of a block: all of its codes are then normal numbers of float32.
_LEAST = 34
# Scales from here on are of blocks with a number that is not finite. Their exponents are coarser:
# multiples of 8, of which the first is 5 * 8.
_SPECIAL = 222
_SPECIAL_ORIGIN = _SPECIAL - 5


@dataclass(frozen=True)
class MiniFloat:
    """Codes of ``bits`` bits, ``mantissa`` of them a mantissa, and a byte of scale for each block.

    A code of exponent e and mantissa m is ``2**(e - top) * (1 + m / 2**mantissa)`` times the
    block's power of two. Code 0 is the number 0, and no other number gets it where there is no
    sign: a denominator must not vanish before its numerator does. A code that is signed has a sign
    bit, and stands for the distance from code 0, so that numbers near 0 are rounded evenly (and
    without asking which they are).

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
    def _has_infinity(self) -> bool:
        return self.bits == 8

    @property
    def _is_nan_minus_zero(self) -> bool:
        """Whether nan has the code of minus zero: with 4 bits none is to spare."""
        return self.is_signed and not self._has_infinity

    @property
    def _nan(self) -> int:
        return self._sign if self._is_nan_minus_zero else self._magnitudes

    @property
    def _infinity(self) -> int:
        return self._magnitudes - 1

    @property
    def _most(self) -> int:
        """The largest magnitude that is a finite number."""
        return self._magnitudes - self._has_infinity - (not self._is_nan_minus_zero)

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
        """What is added to the bits of a block's largest number to find the block's exponent.

        Rounded up it must not exceed the largest code.
        """
        codes_above = ((self._top + 1) << self.mantissa) - self._most
        # What is added to a signed number may be so much of the largest.
        offset = 1 << (24 - self._top) if self.is_signed else 0
        return (codes_above << self._shift) - 1 + offset

    # Tensors

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the numbers."""
        count, scales = shape.numel(), columns[1].to(torch.int32).view(-1, 1)
        codes = _unpacked(columns[0], count) if self.bits == 4 else columns[0].reshape(-1)
        blocks = pad(codes.to(torch.int32), (0, -count % BLOCK)).view(-1, BLOCK)
        magnitude = blocks & self._magnitudes
        lowest = (_exponents(scales) - self._top) << 23
        moved = (magnitude << self._shift) + lowest
        number = moved.view(torch.float32)
        if self.is_signed:
            number = number - lowest.view(torch.float32)
        else:
            number = torch.where(magnitude == 0, 0.0, number)
        is_special = scales >= _SPECIAL
        if self._has_infinity:
            number = torch.where(is_special & (magnitude == self._infinity), torch.inf, number)
        if self.is_signed:
            number = torch.where((blocks & self._sign) != 0, -number, number)
        codes = blocks if self._is_nan_minus_zero else magnitude
        number = torch.where(is_special & (codes == self._nan), torch.nan, number)
        return number.view(-1)[:count].to(compute).view(shape)

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
        most = torch.where(is_finite, magnitude, 0).amax(dim=1, keepdim=True)
        exponents = ((most + self._carry) >> 23).clamp_min(_LEAST)
        special = (exponents + 7 >> 3) + _SPECIAL_ORIGIN
        scales = torch.where(is_special, special, exponents - _LEAST)
        exponents = _exponents(scales)
        if words is None:
            random: Tensor | int = 1 << (self._shift - 1)
        else:
            padded = pad(words.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK)
            random = shifted_right(padded, 32 - self._shift)
        chosen = magnitude
        if self.is_signed:
            lowest = ((exponents - self._top) << 23).view(torch.float32)
            chosen = (magnitude.view(torch.float32) + lowest).view(torch.int32)
        codes = (chosen + random >> self._shift) - ((exponents - self._top) << self.mantissa)
        if not self.is_signed:
            codes = torch.maximum(codes, torch.where(magnitude == 0, 0, bits).clamp_max(1))
        if self._has_infinity:
            codes = torch.where(magnitude == INFINITY, self._infinity, codes)
        is_nan = magnitude > INFINITY if self._has_infinity else ~is_finite
        if not self._is_nan_minus_zero:
            codes = torch.where(is_nan, self._nan, codes)
        if self.is_signed:
            has_sign = (bits < 0) & (codes != 0) if self._is_nan_minus_zero else bits < 0
            codes = torch.where(has_sign, codes | self._sign, codes)
        if self._is_nan_minus_zero:
            codes = torch.where(is_nan, self._nan, codes)
        codes = codes.view(-1)[:count].to(torch.uint8)
        packed = _packed(codes) if self.bits == 4 else codes
        columns[0].copy_(packed.view(columns[0].shape))
        columns[1].copy_(scales.view(-1))

    # The kernels' language

    def kernel_open(self, name: str, addresses: Sequence[str]) -> list[str]:
        """Return what is known of a block before its elements are read."""
        return [
            f"{name}_scale = load_uint8({addresses[1]}, first >> 7)",
            f"{name}_exponent = {_exponent_text(f'{name}_scale')}",
            f"{name}_lowest = {name}_exponent - {_int(self._top)} << {_int(23)}",
            f"{name}_least = float_of({name}_lowest)",
        ]

    def kernel_is_special(self, name: str) -> str:
        """Return whether the block that was opened has elements that are not finite."""
        return f"{name}_scale >= {_int(_SPECIAL)}"

    def kernel_decode(
        self, name: str, addresses: Sequence[str], result: str, *, is_special: bool
    ) -> list[str]:
        """Return what makes ``result`` of an element."""
        lines = [
            f"code = {self._code(addresses[0])}",
            f"magnitude = code & {_int(self._magnitudes)}",
            f"moved = magnitude << {_int(self._shift)}",
        ]
        number = f"float_of(moved + {name}_lowest)"
        if self.is_signed:
            lines.append(f"{result} = {number} - {name}_least")
        else:
            lines.append(f"{result} = ({number} if magnitude > int32(0) else float32(0.0))")
        if is_special and self._has_infinity:
            is_infinite = f"magnitude == {_int(self._infinity)}"
            lines.append(f"{result} = (float32(inf) if {is_infinite} else {result})")
        if self.is_signed:
            sign = f"(code & {_int(self._sign)}) << {_int(32 - self.bits)}"
            lines.append(f"{result} = float_of(bits_of({result}) | ({sign}))")
        if is_special:
            codes = "code" if self._is_nan_minus_zero else "magnitude"
            is_nan = f"{codes} == {_int(self._nan)}"
            lines.append(f"{result} = (float32(nan) if {is_nan} else {result})")
        return lines

    def _code(self, codes: str) -> str:
        if self.bits == 8:
            return f"load_uint8({codes}, at)"
        return f"lshr(load_uint8({codes} + (first >> 1), i), int32(4 * part)) & int32(15)"

    def kernel_scale(self, name: str, *, is_special: bool) -> list[str]:
        """Return what makes a block's scale, ``{name}_scale``, of ``{name}_most``.

        These are the bits of its largest magnitude; of a block that ``is_special``, of the largest
        that is finite.
        """
        exponent = f"largest(lshr({name}_most + {_int(self._carry)}, {_int(23)}), {_int(_LEAST)})"
        if not is_special:
            return [f"{name}_scale = {exponent} - {_int(_LEAST)}"]
        return [
            f"{name}_scale = lshr({exponent} + int32(7), int32(3)) + {_int(_SPECIAL_ORIGIN)}",
        ]

    def kernel_close(self, name: str, addresses: Sequence[str]) -> list[str]:
        """Return what stores a block's scale, and what encoding must know of it."""
        return [
            f"store_uint8({addresses[1]}, first >> 7, {name}_scale)",
            f"{name}_exponent = {_exponent_text(f'{name}_scale')}",
            f"{name}_least = float_of({name}_exponent - {_int(self._top)} << {_int(23)})",
            f"{name}_base = {name}_exponent - {_int(self._top)} << {_int(self.mantissa)}",
        ]

    def kernel_encode(
        self, name: str, addresses: Sequence[str], value: str, word: str, *, is_special: bool
    ) -> list[str]:
        """Return what stores an element."""
        lines = [f"bits = bits_of({value})", f"magnitude = bits & {literal(MAGNITUDE)}"]
        chosen = "magnitude"
        if self.is_signed:
            chosen = f"bits_of(float_of(magnitude) + {name}_least)"
        random = f"lshr({word}, {_int(32 - self._shift)})"
        lines.append(f"code = lshr({chosen} + {random}, {_int(self._shift)}) - {name}_base")
        if not self.is_signed:
            lines.append("code = largest(code, smallest(bits, int32(1)))")
        if is_special and self._has_infinity:
            lines.append(
                f"code = ({_int(self._infinity)} if magnitude == {literal(INFINITY)} else code)"
            )
        is_nan = f"magnitude {'>' if self._has_infinity else '>='} {literal(INFINITY)}"
        nan = f"code = ({_int(self._nan)} if {is_nan} else code)"
        if is_special and not self._is_nan_minus_zero:
            lines.append(nan)
        if self.is_signed:
            sign = f"lshr(bits, {_int(32 - self.bits)}) & {_int(self._sign)}"
            if self._is_nan_minus_zero:
                sign = f"(({sign}) if code != int32(0) else int32(0))"
            lines.append(f"code = code | ({sign})")
        if is_special and self._is_nan_minus_zero:
            lines.append(nan)
        if self.bits == 8:
            return [*lines, f"store_uint8({addresses[0]}, at, code)"]
        codes = f"{addresses[0]} + (first >> 1)"
        # The first half of a block writes whole bytes, the second one its half of them.
        other = f"load_uint8({codes}, i) & int32(15 * part)"
        return [
            *lines,
            f"store_uint8({codes}, i, ({other}) | (code << int32(4 * part)))",
        ]


def _int(x: int) -> str:
    return f"int32({x})"


def _exponent_text(scale: str) -> str:
    special = f"{scale} - {_int(_SPECIAL_ORIGIN)} << int32(3)"
    return (
        f"({scale} + {_int(_LEAST)} if {scale} < {_int(_SPECIAL)}"
        f" else smallest({special}, int32(255)))"
    )


def _exponents(scales: Tensor) -> Tensor:
    """Return the exponents (float32's) that the largest codes of blocks have."""
    special = ((scales - _SPECIAL_ORIGIN) << 3).clamp_max(255)
    return torch.where(scales < _SPECIAL, scales + _LEAST, special)


def _packed(codes: Tensor) -> Tensor:
    """Return codes of 4 bits by two: those of a block's first half, and above them the second's."""
    whole = codes.numel() // BLOCK * BLOCK
    blocks, rest = codes[:whole].view(-1, BLOCK), codes[whole:]
    half = -(-rest.numel() // 2)
    lower = [blocks[:, : BLOCK // 2], rest[:half]]
    upper = [blocks[:, BLOCK // 2 :], pad(rest[half:], (0, rest.numel() % 2))]
    return torch.cat([(a | b << 4).reshape(-1) for a, b in zip(lower, upper, strict=True)])


def _unpacked(items: Tensor, count: int) -> Tensor:
    """Return so many codes, one each."""
    whole = count // BLOCK * (BLOCK // 2)
    parts = items[:whole].view(-1, BLOCK // 2), items[whole:].view(1, -1)
    found = [torch.cat([part & 15, part >> 4], dim=1).reshape(-1) for part in parts]
    return torch.cat(found)[:count]
