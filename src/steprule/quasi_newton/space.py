"""What the groups make of the flat space: frozen parts, scaled parts, bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.quasi_newton.bounds import Box
from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.history import History


class Space:
    """Directions and gradient norms that respect the groups.

    A group's lr scales its part of the direction: with ``r`` its lr divided by the largest,
    ``d = -D H D g``, ``D = diag(sqrt(r))``. H is positive definite, so is ``D H D``, and ``d``
    descends whatever the lrs; a group whose block of H stands alone moves ``r`` times as far. A
    group with lr 0 is frozen. Equal lrs change nothing.

    Args:
        layout: where the parameters lie.
        groups: the parameter groups, for their bounds.
        lrs: each group's lr; not all 0.
    """

    def __init__(
        self, layout: Layout, groups: Sequence[Mapping[str, Any]], lrs: Sequence[float]
    ) -> None:
        self.box = Box.of(groups, layout)
        self._ranks = layout.ranks
        self._scale: Tensor | None = None
        self._movable: Tensor | None = None
        slices = layout.group_slices()
        used = [lr for lr, part in zip(lrs, slices, strict=True) if part.stop > part.start]
        if len(set(used)) == 1:
            return
        scale = torch.empty(layout.size, dtype=layout.dtype, device=layout.device)
        for lr, part in zip(lrs, slices, strict=True):
            scale[part] = math.sqrt(lr / max(used))
        self._scale = scale
        if min(used) == 0.0:
            self._movable = scale > 0

    @property
    def is_plain(self) -> bool:
        """Whether everything may move anywhere."""
        return self.box is None and self._movable is None

    def direction(self, history: History, point: Tensor, grad: Tensor) -> tuple[Tensor, float]:
        """Return the descent direction at a point, and the derivative of the loss along it."""
        free = self._movable
        if self.box is not None:
            held = self.box.held(point, grad)
            if self._ranks.any(bool(held.any())):
                free = ~held if free is None else free & ~held
        if self._scale is None:
            direction, slope = history.descent(grad, free)
        else:
            direction, slope = history.descent(grad * self._scale, free)
            direction = direction.mul_(self._scale)
        return direction, self._ranks.dot(grad, direction) if slope is None else slope

    def gradient_norm(self, point: Tensor, grad: Tensor) -> float:
        """Return the largest entry of the gradient of what may move."""
        if self._movable is not None:
            grad = grad * self._movable
        if self.box is not None:
            return self.box.gradient_norm(point, grad)
        return self._ranks.largest_entry(grad)
