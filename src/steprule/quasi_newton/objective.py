"""The closure as a function of the flat vector, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor
from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.ranks import largest_entry


@dataclass(frozen=True)
class Evaluation:
    """The loss and flat gradient at a point (both negated if maximizing).

    Args:
        loss: the same on every rank, as all numbers here.
        grad: of this rank's part of the vector.
        norm: the largest absolute entry of the gradient.
        slope: the derivative along the direction that was asked for; nan if none was.
        largest: the ranks' largest of the numbers given with it.
    """

    loss: float
    grad: Tensor
    norm: float
    slope: float = math.nan
    largest: tuple[float, ...] = ()

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

    def here(self, along: Tensor | None = None, largest: Sequence[float] = ()) -> Evaluation:
        """Evaluate at the parameters as they are; one message, if there are other ranks.

        Args:
            along: a direction along which to take the derivative.
            largest: numbers of which the largest of all ranks is wanted.
        """
        with torch.enable_grad():
            output = self.closure()
        if self.evaluations == 0:
            self.first_output = output
        self.evaluations += 1
        grad = self.layout.gather_grad()
        if self._sign < 0:
            grad.neg_()
        ranks = self.layout.ranks
        slopes = () if along is None else (float(ranks.counted(grad).dot(along)),)
        loss, slopes, highest = ranks.agreed_on_loss(
            self._sign * _number(output), slopes, (largest_entry(grad), *largest)
        )
        slope = math.nan if along is None else float(slopes[0])
        return Evaluation(loss, grad, float(highest[0]), slope, tuple(map(float, highest[1:])))

    def at(
        self, point: Tensor, along: Tensor | None = None, largest: Sequence[float] = ()
    ) -> Evaluation:
        """Evaluate at a flat vector, which the parameters then hold."""
        self.layout.scatter(point)
        return self.here(along, largest)

    def user_loss(self, loss: float) -> float:
        """Return a loss in the closure's own sign."""
        return self._sign * loss


def _number(output: Any) -> float:
    is_tensor = isinstance(output, Tensor)
    try:
        value = output.detach() if is_tensor else output
        return float(value.full_tensor() if is_dtensor(value) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        shown = f"a tensor of shape {tuple(output.shape)}" if is_tensor else repr(output)
        raise TypeError(
            f"the closure given to LBFGS.step must return the loss as one number, got {shown}: "
            "end it with `return loss`"
        ) from error
