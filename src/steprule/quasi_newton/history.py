"""The last pairs (s, y) in one ring buffer, and the direction they give.

``s`` is a step and ``y`` the change of the gradient over it. With S and Y the matrices whose rows
are the pairs, oldest first, ``R`` the upper triangle of ``S Y'``, ``D`` its diagonal and ``gamma``
the scale of the initial matrix, the direction ``-H g`` is

    alpha = inverse(R) S g
    q     = g - Y' alpha
    c     = inverse(R') (D alpha - gamma Y q)
    -H g  = -(gamma q + S' c)

Source: R. H. Byrd, J. Nocedal, R. B. Schnabel, "Representations of quasi-Newton matrices and
their use in limited memory methods", Mathematical Programming 63 (1994), equation (3.1), factored
so that each line is one loop of Nocedal's two-loop recursion (Mathematics of Computation 35,
1980): as accurate, since ``q`` is formed before it is multiplied by Y, but a few matrix-vector
products in place of four vector operations a pair. ``R`` costs one column a pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steprule.quasi_newton.passes import Passes, passes_for
from steprule.quasi_newton.triangle import Matrix, Slots, solved

# A pair restricted to the free variables is used if this much of its curvature is left.
LEFT_OF_CURVATURE = 1e-8


@dataclass(frozen=True)
class _Snapshot:
    count: int
    start: int
    gamma: float
    curvature: Matrix
    unsettled: int | None


class History:
    """A ring of at most ``capacity`` pairs of vectors.

    Args:
        capacity: how many pairs are kept; the oldest goes first.
        size: length of a vector.
        dtype: how vectors are stored (``history_dtype``).
        like: the dtype the direction is computed in, and the device.
    """

    def __init__(self, capacity: int, size: int, dtype: torch.dtype, like: Tensor) -> None:
        self.capacity = capacity
        # Untouched memory costs nothing yet: rows are written as pairs come.
        self._rows = torch.empty(2, capacity, size, dtype=dtype, device=like.device)
        self._dtype = like.dtype
        self._curvature: Matrix = np.zeros((capacity, capacity))
        self._unsettled: int | None = None  # the slot whose column of R is not computed yet
        self._count = 0
        self._start = 0
        self.gamma = 1.0
        self._snapshot: _Snapshot | None = None
        self._overwritten: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    @property
    def start(self) -> int:
        """The slot of the oldest pair."""
        return self._start

    @property
    def dtype(self) -> torch.dtype:
        """How vectors are stored."""
        return self._rows.dtype

    @property
    def vector_dtype(self) -> torch.dtype:
        """What the direction is computed in."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self._rows.device

    @property
    def size(self) -> int:
        """Length of a vector."""
        return self._rows.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the ring: 2 * capacity * size * (bytes of the storage dtype)."""
        return self._rows.numel() * self._rows.element_size()

    def rounded(self, vector: Tensor) -> Tensor:
        """Return the vector as the history would give it back."""
        return vector.to(self.dtype).to(self._dtype)

    def learn(self, step: Tensor, change: Tensor, least: float | None) -> None:
        """Add a pair if its curvature is positive.

        Args:
            step: s, as :meth:`rounded` gives it.
            change: y, likewise.
            least: what y's must be above; None for ``eps |s| |y|``.
        """
        curvature = float(step.dot(change))
        if least is None:
            precision = torch.finfo(step.dtype).eps
            least = precision * float(step.norm()) * float(change.norm())
        if not least < curvature < math.inf:
            return
        square = float(change.dot(change))
        if 0.0 < square < math.inf:
            self.push(step, change, curvature, curvature / square)

    def push(self, step: Tensor, change: Tensor, curvature: float, gamma: float) -> None:
        """Add the pair (s, y) = (step, change); y's is ``curvature``, ``gamma`` is y's / y'y."""
        self._settle()
        slot = self._put_newest(step, change)
        self._curvature[slot, slot] = curvature
        self.gamma = gamma
        self._unsettled = slot

    def _put_newest(self, step: Tensor, change: Tensor) -> int:
        """Write a pair into the ring; return its slot."""
        slot = (self._start + self._count) % self.capacity
        self._keep_for_restore(slot)
        self._rows[0, slot] = step
        self._rows[1, slot] = change
        if self._count == self.capacity:
            self._start = (self._start + 1) % self.capacity
        else:
            self._count += 1
        return slot

    def clear(self) -> None:
        """Forget all pairs."""
        self._count = self._start = 0
        self._unsettled = None
        self.gamma = 1.0

    def descent(self, grad: Tensor, free: Tensor | None = None) -> tuple[Tensor, float | None]:
        """Return the direction, and the gradient's product with it where it is known already."""
        return self.direction(grad, free), None

    def direction(self, grad: Tensor, free: Tensor | None = None) -> Tensor:
        """Return ``-H grad``, in a new vector.

        Args:
            grad: the gradient, finite.
            free: a mask of the variables that may move; H is then built from the pairs
                restricted to these (M. Schmidt, D. Kim, S. Sra, "Projected Newton-type methods
                in machine learning", 2012, section 3), and the others get 0.
        """
        if free is not None:
            grad = grad * free
        if not self._count:
            return grad * -self.gamma
        steps, changes = self._rows[0, : self._count], self._rows[1, : self._count]
        passes = passes_for(self._rows, grad)
        newest = grad if self._unsettled is None else self._vector(1, self._unsettled)
        products, column = passes.project(steps, grad, newest)
        self._set_column(column)
        if free is not None:
            return self._masked_direction(passes, products, grad, free)
        order, gamma = self._order(), self.gamma
        alpha = solved(self._curvature, order, products.numpy())
        rest, along = passes.peel(changes, torch.from_numpy(alpha), grad)
        diagonal = self._curvature.diagonal()[: self._count]
        right = diagonal * alpha - gamma * along.numpy()
        weights = solved(self._curvature, order, right, is_transposed=True)
        return passes.combine(steps, torch.from_numpy(weights), gamma, rest)

    def _masked_direction(
        self, passes: Passes, products: Tensor, grad: Tensor, free: Tensor
    ) -> Tensor:
        """Return the direction from the pairs restricted to the free variables."""
        kept, curvature, gamma = self._restricted(free)
        if not len(kept):
            return grad * -gamma
        steps, changes = self._rows[0, : self._count], self._rows[1, : self._count]
        order = np.arange(len(kept))
        alpha = solved(curvature, order, products.numpy()[kept])
        rest, _ = passes.peel(changes, self._spread(alpha, kept), grad)
        rest *= free
        along, _ = passes.project(changes, rest, rest)
        right = curvature.diagonal() * alpha - gamma * along.numpy()[kept]
        weights = solved(curvature, order, right, is_transposed=True)
        return passes.combine(steps, self._spread(weights, kept), gamma, rest) * free

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the steps and the changes, oldest first, as views of the ring."""
        slots = self._order().tolist()
        return [self._rows[0, i] for i in slots], [self._rows[1, i] for i in slots]

    def curvature(self) -> Tensor:
        """Return ``S Y'`` with pairs oldest first; entries below the diagonal mean nothing."""
        self._settle()
        order = self._order()
        return torch.from_numpy(np.triu(self._curvature[np.ix_(order, order)]))

    def fill(
        self, steps: Sequence[Tensor], changes: Sequence[Tensor], gamma: float, start: int = 0
    ) -> None:
        """Replace all pairs by these (oldest first; the newest that fit are kept)."""
        first = max(0, len(steps) - self.capacity)
        count = len(steps) - first
        self._count, self._start = count, start if count == self.capacity else 0
        self._unsettled = None
        for k, slot in enumerate(self._order().tolist()):
            self._rows[0, slot] = steps[first + k]
            self._rows[1, slot] = changes[first + k]
        self.gamma = gamma
        self._curvature.fill(0.0)
        self._multiply_out()

    def put_diagonal(self, diagonal: Sequence[float]) -> None:
        """Replace the pairs' ``y's``, oldest first, by values that were kept (the newest ones)."""
        order = self._order()
        if len(diagonal) >= len(order):
            self._curvature[order, order] = diagonal[len(diagonal) - len(order) :]

    def is_near_curvature(self, curvature: Tensor) -> bool:
        """Tell whether this can be R of the pairs that are here, but for rounding."""
        order = self._order()
        steps, changes = self._norms()
        allowed = torch.outer(steps, changes).cpu().numpy() * torch.finfo(self._dtype).eps ** 0.5
        off = np.abs(
            curvature.to("cpu", torch.float64).numpy() - self._curvature[np.ix_(order, order)]
        )
        return bool((np.triu(off) <= allowed).all())

    def put_curvature(self, curvature: Tensor) -> None:
        """Replace R by one that was saved, so that a resumed run is the same bit for bit."""
        order = self._order()
        self._curvature[np.ix_(order, order)] = curvature.to("cpu", torch.float64).numpy()

    def begin(self) -> None:
        """Remember what ``restore`` must bring back."""
        self._overwritten.clear()
        self._snapshot = _Snapshot(
            self._count, self._start, self.gamma, self._curvature.copy(), self._unsettled
        )

    def commit(self) -> None:
        """Keep what was done since ``begin``."""
        self._overwritten.clear()
        self._snapshot = None

    def restore(self) -> None:
        """Undo what was done since ``begin``."""
        saved = self._snapshot
        if saved is None:
            return
        for slot, rows in self._overwritten.items():
            self._rows[:, slot] = rows
        self._count, self._start, self.gamma = saved.count, saved.start, saved.gamma
        self._curvature, self._unsettled = saved.curvature, saved.unsettled
        self.commit()

    def _multiply_out(self) -> None:
        """Compute R of the pairs that are here."""
        for slot in self._order().tolist():
            self._unsettled = slot
            self._settle()

    def _norms(self) -> tuple[Tensor, Tensor]:
        """Return the lengths of the steps and of the changes, oldest first."""
        steps, changes = (
            torch.linalg.vector_norm(
                self._rows[i, self._order().tolist()], dim=-1, dtype=torch.float64
            )
            for i in (0, 1)
        )
        return steps, changes

    def _keep_for_restore(self, slot: int) -> None:
        saved = self._snapshot
        if saved is not None and slot < saved.count and slot not in self._overwritten:
            self._overwritten[slot] = self._rows[:, slot].clone()

    def _order(self) -> Slots:
        """Slots, oldest pair first."""
        return (np.arange(self._count) + self._start) % self.capacity

    def _vector(self, which: int, slot: int) -> Tensor:
        return self._rows[which, slot].to(self._dtype)

    def _settle(self) -> None:
        if self._unsettled is not None:
            newest = self._vector(1, self._unsettled)
            steps = self._rows[0, : self._count]
            self._set_column(passes_for(self._rows, newest).project(steps, newest, newest)[1])

    def _set_column(self, column: Tensor) -> None:
        if self._unsettled is not None:
            self._curvature[: self._count, self._unsettled] = column.numpy()
            self._unsettled = None

    def _spread(self, weights: Matrix, order: Slots) -> Tensor:
        """Weights of the pairs in ``order`` as weights of the slots, 0 for the others."""
        spread = np.zeros(self._count)
        spread[order] = weights
        return torch.from_numpy(spread)

    def _restricted(self, free: Tensor) -> tuple[Slots, Matrix, float]:
        """Return the slots with positive curvature on the free variables, S Y' and gamma."""
        order = self._order()
        curvature = self._curvature[np.ix_(order, order)]
        fixed = (~free).nonzero()[:, 0]
        slots = torch.from_numpy(order).to(fixed.device)
        steps = self._rows[0, :, fixed][slots].to(self._dtype)
        changes = self._rows[1, :, fixed][slots].to(self._dtype)
        left = curvature - (steps @ changes.t()).double().cpu().numpy()
        good = left.diagonal() > LEFT_OF_CURVATURE * curvature.diagonal()
        kept = order[good]
        if not len(kept):
            return kept, left, 1.0
        left = np.ascontiguousarray(left[np.ix_(good, good)])
        newest = self._vector(1, int(kept[-1])) * free
        return kept, left, float(left[-1, -1]) / float(newest.dot(newest))
