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
        """Return the sum of the two."""
        return columns[0].to(compute) + columns[1].to(compute)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Round ``value``, and keep what is lost."""
        columns[0].copy_(value)
        rest = value - columns[0].to(value.dtype)
        columns[1].copy_(torch.where(torch.isfinite(rest), rest, 0.0))

    @property
    def _dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def kernel_read(self, addresses: Sequence[str], index: str) -> str:
        """Return an expression for element ``index``."""
        kind = self._dtype_name
        return f"load_{kind}({addresses[0]}, {index}) + load_{kind}({addresses[1]}, {index})"

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
