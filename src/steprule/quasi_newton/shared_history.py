"""The history of a vector that is spread over ranks: one message an iteration.

The two-loop recursion, and History's form of it, multiply by Y what they have got from S: on many
ranks that is one all-reduce after the other. With ``G = Y Y'`` kept beside R, all that depends on
the vectors is products of the gradient and the newest pair with all pairs, which go into one
message; the rest is arithmetic of ``history_size`` numbers, alike on every rank::

    alpha  = inverse(R) S g
    Y q    = Y g - G alpha
    c      = inverse(R') (D alpha - gamma Y q)
    -H g   = -(gamma (g - Y' alpha) + S' c)
    g' H g = gamma (g'g - alpha' Y g) + c' S g

The products are as accurate as those of the recursion, whose ``q`` is rounded before it is
multiplied; sums are taken in float64 and, over the pairs, exactly.

Source: R. H. Byrd, J. Nocedal, R. B. Schnabel (1994), as in history.py, equation (3.1), which has
the product ``Y Y'``; W. Chen, Z. Wang, J. Zhou, "Large-scale L-BFGS using MapReduce", Advances in
Neural Information Processing Systems 27 (2014), which keeps all products of pairs for this reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.quasi_newton.history import LEFT_OF_CURVATURE, History
from steprule.quasi_newton.passes import Passes, passes_for
from steprule.quasi_newton.ranks import SharedRanks
from steprule.quasi_newton.triangle import Matrix, solved


class SharedHistory(History):
    """A ring of pairs, of whose vectors this rank has a part.

    Args:
        capacity: as of :class:`History`.
        size: length of this rank's part.
        dtype: how vectors are stored.
        like: the dtype the direction is computed in, and the device.
        ranks: the ranks that have the rest.
    """

    def __init__(
        self, capacity: int, size: int, dtype: torch.dtype, like: Tensor, ranks: SharedRanks
    ) -> None:
        super().__init__(capacity, size, dtype, like)
        self._rows.zero_()  # they are saved whole
        self._ranks = ranks
        self._gram: Matrix = np.zeros((capacity, capacity))
        self._gram_before: Matrix | None = None
        self._candidate: tuple[Tensor, Tensor, float | None] | None = None

    @property
    def ranks(self) -> SharedRanks:
        """The ranks that have the rest."""
        return self._ranks

    @property
    def rows(self) -> Tensor:
        """Steps and changes by slot: of shape (2, capacity, size)."""
        return self._rows

    def learn(self, step: Tensor, change: Tensor, least: float | None) -> None:
        """Have the next direction add a pair if its curvature is positive.

        What tells that goes with the direction's message.
        """
        self._candidate = step, change, least

    def push(self, step: Tensor, change: Tensor, curvature: float, gamma: float) -> None:
        self._push(step, change, gamma, *self._agreed_columns(change), curvature)

    def direction(self, grad: Tensor, free: Tensor | None = None) -> Tensor:
        return self.descent(grad, free)[0]

    def descent(self, grad: Tensor, free: Tensor | None = None) -> tuple[Tensor, float | None]:
        if free is None:
            return self._descent(grad)
        candidate, self._candidate = self._candidate, None
        if candidate is not None:
            step, change, least = candidate
            numbers = [*_products(step, change, self._ranks), *self._own_columns(change)]
            self._take(step, change, least, self._ranks.agreed(numbers)[0])
        return self._masked_descent(grad * free, free)

    def _descent(self, grad: Tensor) -> tuple[Tensor, float]:
        """Return the direction and the slope, and take the pair that waits; one message."""
        count = self._count
        candidate, self._candidate = self._candidate, None
        counted = self._ranks.counted(grad)
        change = None if candidate is None else self._ranks.counted(candidate[1])
        own: list[float] = [_dot(grad, counted)]
        products = [self._project(which, counted, change) for which in (0, 1)]
        own += products[0][0] + products[1][0]
        if candidate is not None:
            own += [_dot(candidate[0], counted), _dot(candidate[1], counted)]
            own += _products(candidate[0], candidate[1], self._ranks)
            own += products[0][1] + products[1][1]
        found = self._ranks.agreed(own)[0]
        square, found = float(found[0]), found[1:]
        along = np.zeros((2, self.capacity))  # S g and Y g, by slot
        along[:, :count] = np.reshape(found[: 2 * count], (2, count))
        if candidate is not None:
            rest = found[2 * count :]
            slot = self._take(*candidate, rest[2:])
            if slot is not None:
                along[:, slot] = rest[:2]
        along = along[:, : self._count]
        if not self._count:
            return grad * -self.gamma, -self.gamma * square
        return self._combined(grad, square, along[0], along[1])

    def _combined(
        self, grad: Tensor, square: float, of_steps: Matrix, of_changes: Matrix
    ) -> tuple[Tensor, float]:
        count, order, gamma = self._count, self._order(), self.gamma
        alpha = solved(self._curvature, order, of_steps)
        along = of_changes - [_sum(row * alpha) for row in self._gram[:count, :count]]
        diagonal = self._curvature.diagonal()[:count]
        weights = solved(
            self._curvature, order, diagonal * alpha - gamma * along, is_transposed=True
        )
        slope = -(gamma * (square - _sum(of_changes * alpha)) + _sum(of_steps * weights))
        passes, steps, changes = self._passes(grad)
        rest, _ = passes.peel(changes, torch.from_numpy(alpha), grad)
        return passes.combine(steps, torch.from_numpy(weights), gamma, rest), slope

    def _masked_descent(self, grad: Tensor, free: Tensor) -> tuple[Tensor, float]:
        """Return direction and slope from the pairs restricted to the free variables.

        Two messages, one of them as long as the square of the number of pairs.
        """
        count, order, ranks = self._count, self._order(), self._ranks
        counted = ranks.counted(grad)
        fixed = ranks.counted((~free).to(self._dtype)).nonzero()[:, 0]
        slots = torch.from_numpy(order).to(fixed.device)
        steps = self._rows[0, :, fixed][slots].to(self._dtype)
        changes = self._rows[1, :, fixed][slots].to(self._dtype)
        lost = (steps @ changes.t()).double().cpu().numpy()
        movable = ranks.counted(free.to(self._dtype))
        squares = [
            _dot(row, row * movable) for row in (self._vector(1, int(slot)) for slot in order)
        ]
        own = [_dot(grad, counted), *squares, *self._project(0, counted)[0], *lost.flatten()]
        found = ranks.agreed(own)[0]
        square, squares = float(found[0]), found[1 : 1 + count]
        of_steps = np.asarray(found[1 + count : 1 + 2 * count])
        curvature = self._curvature[np.ix_(order, order)]
        left = curvature - np.reshape(found[1 + 2 * count :], (count, count))
        good = left.diagonal() > LEFT_OF_CURVATURE * curvature.diagonal()
        kept = order[good]
        if not len(kept):
            gamma = 1.0 if count else self.gamma
            return grad * -gamma, -gamma * square
        left = np.ascontiguousarray(left[np.ix_(good, good)])
        gamma = float(left[-1, -1]) / float(np.asarray(squares)[good][-1])
        places = np.arange(len(kept))
        alpha = solved(left, places, of_steps[kept])
        passes, of_pairs, of_changes = self._passes(grad)
        rest, _ = passes.peel(of_changes, self._spread(alpha, kept), grad)
        rest *= free
        counted = ranks.counted(rest)
        found = ranks.agreed([_dot(grad, counted), *self._project(1, counted)[0]])[0]
        along = np.asarray(found[1:])[kept]
        weights = solved(left, places, left.diagonal() * alpha - gamma * along, is_transposed=True)
        slope = -(gamma * float(found[0]) + _sum(of_steps[kept] * weights))
        return passes.combine(of_pairs, self._spread(weights, kept), gamma, rest) * free, slope

    def clear(self) -> None:
        super().clear()
        self._candidate = None

    def begin(self) -> None:
        super().begin()
        self._gram_before = self._gram.copy()

    def commit(self) -> None:
        super().commit()
        self._gram_before = self._candidate = None

    def restore(self) -> None:
        if self._gram_before is not None:
            self._gram = self._gram_before
        super().restore()

    def gram(self) -> Tensor:
        """Return ``Y Y'`` with pairs oldest first."""
        order = self._order()
        return torch.from_numpy(self._gram[np.ix_(order, order)])

    def put_gram(self, gram: Tensor) -> None:
        """Replace ``Y Y'`` by one that was saved, so that a resumed run is the same."""
        order = self._order()
        self._gram[np.ix_(order, order)] = gram.to("cpu", torch.float64).numpy()

    def _multiply_out(self) -> None:
        """Compute R and ``Y Y'`` of the pairs that are here; one message."""
        slots = self._order().tolist()
        own = [self._own_columns(self._vector(1, slot)) for slot in slots]
        found = self._ranks.agreed([number for columns in own for number in columns])[0]
        count = self._count
        both = np.reshape(found, (count, 2, count))
        self._gram.fill(0.0)
        for slot, (column, products) in zip(slots, both, strict=True):
            self._curvature[:count, slot] = column
            self._gram[:count, slot] = products

    def _norms(self) -> tuple[Tensor, Tensor]:
        order = self._order().tolist()
        vectors = [self._vector(0, slot) for slot in order]
        squares = self._ranks.agreed([_dot(v, self._ranks.counted(v)) for v in vectors])[0]
        of_changes = self._gram.diagonal()[order]
        return torch.tensor(np.sqrt(squares)), torch.tensor(np.sqrt(of_changes))

    def _take(self, step: Tensor, change: Tensor, least: float | None, found: Any) -> int | None:
        """Add the pair if its curvature, first of what was found of it, is positive.

        Returns:
            Its slot.
        """
        curvature, square, length = (float(number) for number in found[:3])
        if least is None:
            least = torch.finfo(step.dtype).eps * math.sqrt(length) * math.sqrt(square)
        if not (least < curvature < math.inf and 0.0 < square < math.inf):
            return None
        column, products = np.reshape(found[3:], (2, self._count))
        return self._push(step, change, curvature / square, column, products, curvature, square)

    def _push(
        self,
        step: Tensor,
        change: Tensor,
        gamma: float,
        column: Any,
        products: Any,
        curvature: float,
        square: float | None = None,
    ) -> int:
        count = self._count
        slot = self._put_newest(step, change)
        self._curvature[:count, slot] = column
        self._curvature[slot, slot] = curvature
        self._gram[:count, slot] = self._gram[slot, :count] = products
        self._gram[slot, slot] = curvature / gamma if square is None else square
        self.gamma = gamma
        return slot

    def _agreed_columns(self, change: Tensor) -> tuple[Matrix, Matrix]:
        found = self._ranks.agreed(self._own_columns(change))[0]
        column, products = np.reshape(found, (2, self._count))
        return column, products

    def _own_columns(self, change: Tensor) -> list[float]:
        """Return this rank's part of a new column of R and of ``Y Y'``, without the diagonals."""
        counted = self._ranks.counted(change)
        return self._project(0, counted)[0] + self._project(1, counted)[0]

    def _project(
        self, which: int, one: Tensor, other: Tensor | None = None
    ) -> tuple[list[float], list[float]]:
        """Return the products of the steps (0) or changes (1), by slot, with two vectors."""
        if not self._count:
            return [], []
        passes, *rows = self._passes(one)
        first, second = passes.project(rows[which], one, one if other is None else other)
        return first.tolist(), second.tolist()

    def _passes(self, vector: Tensor) -> tuple[Passes, Tensor, Tensor]:
        rows = self._rows[:, : self._count]
        return passes_for(self._rows, vector), rows[0], rows[1]


def _products(step: Tensor, change: Tensor, ranks: SharedRanks) -> list[float]:
    """Return this rank's part of y's, y'y and s's."""
    counted = ranks.counted(change)
    square = _dot(step, ranks.counted(step))
    return [_dot(step, counted), _dot(change, counted), square]


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.double(), other.double()))


def _sum(products: Iterable[float]) -> float:
    """Return the sum that no order matters to: NumPy's may depend on where an array lies."""
    try:
        return math.fsum(products)
    except (OverflowError, ValueError):  # too large, or inf - inf
        return math.nan
