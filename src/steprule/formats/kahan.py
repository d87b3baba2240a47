"""Parameters of 16 bits with what rounding has lost kept beside them, in the same dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steprule.formats import Column


@dataclass(frozen=True)
class KahanFormat:
    """A tensor and what has to be added to it: Kahan's compensated summation (1965).

    ``param = round(value)``, ``compensation = round(value - param)``; their sum is what is read.
    """

    dtype: torch.dtype
    is_random = False
    name = "kahan"

    @property
    def columns(self) -> tuple[Column, ...]:
        """The parameter and the compensation."""
        return Column("", self.dtype), Column(self.name, self.dtype)

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the sum of the two; the parameter alone where it is not what was written.

        Someone has put another number there, to which what was lost does not belong.
        """
        param, lost = columns[0].to(compute), columns[1].to(compute)
        value = param + lost
        return torch.where(value.to(self.dtype) == columns[0], value, param)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Round ``value``, and keep what is lost."""
        columns[0].copy_(value)
        rest = value - columns[0].to(value.dtype)
        columns[1].copy_(torch.where(torch.isfinite(rest), rest, 0.0))

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def kernel_read(self, addresses: Sequence[str], index: str, result: str) -> list[str]:
        """Return statements that read element ``index``."""
        kind = self._dtype_name
        return [
            f"number = load_{kind}({addresses[0]}, {index})",
            f"{result} = number + load_{kind}({addresses[1]}, {index})",
            f"{result} = ({result} if rounded_{kind}({result}) == number else number)",
        ]

    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]:
        """Return statements that store ``value`` at element ``index``."""
        kind = self._dtype_name
        return [
            f"number = float32({value})",
            f"lost = number - rounded_{kind}(number)",
            # Of infinity and nan there is no rest: nan is unequal to itself.
            "lost = (lost if abs(lost) < float32(inf) else float32(0.0))",
            f"store_{kind}({addresses[0]}, {index}, number)",
            f"store_{kind}({addresses[1]}, {index}, lost)",
        ]
