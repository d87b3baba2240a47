"""The closure as a function of the flat vector, counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.quasi_newton.flatten import Layout, largest_entry


@dataclass(frozen=True)
class Evaluation:
    """The loss and flat gradient at a point (both negated if maximizing)."""

    loss: float
    grad: Tensor
    norm: float  # the largest absolute entry of the gradient

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Objective:
    """What is minimised.

    Args:
        closure: clears the gradients, computes the loss, calls ``backward``, returns the loss.
        layout: where the parameters lie in the flat vector.
        maximize: minimise the negative instead.
        max_eval: how many evaluations may be made.
    """

    def __init__(
        self, closure: Callable[[], Any], layout: Layout, *, maximize: bool, max_eval: float
    ) -> None:
        self.layout = layout
        self.evaluations = 0
        self.first_output: Any = None
        self.closure = closure
        self._sign = -1.0 if maximize else 1.0
        self._max_eval = max_eval

    @property
    def left(self) -> float:
        """How many evaluations may still be made."""
        return max(0, self._max_eval - self.evaluations)

    def here(self) -> Evaluation:
        """Evaluate at the parameters as they are."""
        with torch.enable_grad():
            output = self.closure()
        if self.evaluations == 0:
            self.first_output = output
        self.evaluations += 1
        grad = self.layout.gather_grad()
        if self._sign < 0:
            grad.neg_()
        return Evaluation(self._sign * _number(output), grad, largest_entry(grad))

    def at(self, point: Tensor) -> Evaluation:
        """Evaluate at a flat vector, which the parameters then hold."""
        self.layout.scatter(point)
        return self.here()

    def user_loss(self, loss: float) -> float:
        """Return a loss in the closure's own sign."""
        return self._sign * loss


def _number(output: Any) -> float:
    is_tensor = isinstance(output, Tensor)
    try:
        return float(output.detach() if is_tensor else output)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = f"a tensor of shape {tuple(output.shape)}" if is_tensor else repr(output)
        raise TypeError(
            f"the closure given to LBFGS.step must return the loss as one number, got {shown}: "
            "end it with `return loss`"
        ) from error
