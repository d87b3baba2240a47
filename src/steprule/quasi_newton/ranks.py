"""What every rank must know of the whole vector: numbers agreed on in one message.

A rank that decided by numbers of its own would leave the others behind: it would stop, or try
another step, while they wait for it. So whatever is compared is the same on every rank, bit for
bit. Sums are all-reduced, after which every rank has the same ones. Maxima travel in the same
message: each rank writes to a place of its own, where the others add zeros, which is exact and
keeps what is not a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steprule.distributed.sums import all_reduce

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Numbers = NDArray[np.float64]


def largest_entry(flat: Tensor) -> float:
    """Return the largest absolute entry, nan if there is one; 0 of nothing."""
    if not flat.numel():
        return 0.0
    low, high = torch.aminmax(flat)  # twenty times as fast as the norm of order infinity
    return max(abs(float(low)), abs(float(high)))


class Ranks:
    """A process that has the whole vector: nothing is to be agreed on."""

    is_alone: ClassVar[bool] = True

    def agreed(self, sums: Sequence[float], largest: Sequence[float] = ()) -> tuple[Any, Any]:
        """Return the sums and the maxima over all ranks, of what each has found of its part."""
        return sums, largest

    def agreed_on_loss(
        self, loss: float, sums: Sequence[float], largest: Sequence[float]
    ) -> tuple[float, Any, Any]:
        """Return the loss that every rank goes by, and what ``agreed`` does."""
        return loss, sums, largest

    def counted(self, vector: Tensor) -> Tensor:
        """Return a vector with zeros where another rank counts: for one side of a product."""
        return vector

    def dot(self, one: Tensor, other: Tensor) -> float:
        """Return the product of two vectors."""
        return float(self.agreed([float(one.dot(self.counted(other)))])[0][0])

    def absolute_sum(self, vector: Tensor) -> float:
        """Return the sum of the absolute entries."""
        return float(self.agreed([float(self.counted(vector).abs().sum())])[0][0])

    def largest(self, number: float) -> float:
        """Return the largest of the ranks' numbers, nan if one is."""
        return float(self.agreed([], [number])[1][0])

    def largest_entry(self, vector: Tensor) -> float:
        """Return the largest absolute entry, nan if there is one."""
        return self.largest(largest_entry(vector))

    def any(self, flag: bool) -> bool:
        """Tell whether something is so on any rank."""
        return self.largest(float(flag)) > 0.0


@dataclass(frozen=True)
class SharedRanks(Ranks):
    """The ranks over which the vector is spread, this one among them.

    Args:
        groups: to reduce over in turn; one is enough where the ranks are all there are.
        count: how many ranks there are.
        index: which of them this is.
        uncounted: the parts of this rank's vector that another one has as well, and counts.
        device: where messages are made.
    """

    groups: tuple[ProcessGroup, ...]
    count: int
    index: int
    uncounted: tuple[tuple[int, int], ...]
    device: torch.device

    is_alone: ClassVar[bool] = False

    def agreed(self, sums: Sequence[float], largest: Sequence[float] = ()) -> tuple[Any, Any]:
        numbers: Numbers = np.zeros(len(sums) + len(largest) * self.count)
        numbers[: len(sums)] = sums
        numbers[len(sums) + self.index :: self.count] = largest
        message = torch.from_numpy(numbers).to(self.device)
        all_reduce(message, self.groups)
        found = message.cpu().numpy()
        places = found[len(sums) :].reshape(len(largest), self.count)
        return found[: len(sums)], places.max(axis=1)

    def agreed_on_loss(
        self, loss: float, sums: Sequence[float], largest: Sequence[float]
    ) -> tuple[float, Any, Any]:
        """Return the loss of the first rank if all have the same, to rounding; else their mean.

        The mean is what gradients averaged over ranks are the gradient of.
        """
        first = loss if self.index == 0 else 0.0
        found, highest = self.agreed([first, loss, *sums], largest)
        agreed, mean = float(found[0]), float(found[1]) / self.count
        is_same = abs(mean - agreed) <= self.count * np.finfo(np.float64).eps * abs(agreed)
        return agreed if is_same else mean, found[2:], highest

    def counted(self, vector: Tensor) -> Tensor:
        if not self.uncounted:
            return vector
        vector = vector.clone()
        for start, stop in self.uncounted:
            vector[start:stop] = 0
        return vector
