"""What a step of LBFGS did, and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Reason = Literal[
    "gradient", "change", "iterations", "evaluations", "line_search", "not_finite", "empty"
]

MEANINGS: Final[dict[Reason, str]] = {
    "gradient": "the largest entry of the gradient is at most tolerance_grad",
    "change": "the loss or the parameters changed by at most tolerance_change",
    "iterations": "max_iter iterations are done",
    "evaluations": "max_eval evaluations are done",
    "line_search": "the line search found no lower point, not even along the gradient",
    "not_finite": "the loss or gradient is nan or infinite, and backtracking did not cure it; "
    "the parameters are at the last finite point",
    "empty": "there are no parameters to move",
}


@dataclass(frozen=True)
class Result:
    """The outcome of one ``step``.

    Args:
        reason: why it stopped, one of ``"gradient"``, ``"change"``, ``"iterations"``,
            ``"evaluations"``, ``"line_search"``, ``"not_finite"``, ``"empty"``.
        iterations: directions computed in this step.
        evaluations: calls of the closure in this step.
        loss: the closure's value at the last point evaluated that was accepted.
        gradient_norm: the largest absolute entry of the gradient there (under bounds: of the
            projected gradient).
    """

    reason: Reason
    iterations: int
    evaluations: int
    loss: float
    gradient_norm: float

    @property
    def converged(self) -> bool:
        """Whether a tolerance was met, rather than a limit or a failure."""
        return self.reason in ("gradient", "change")

    @property
    def message(self) -> str:
        """The reason, in a sentence."""
        return MEANINGS[self.reason]

    def __str__(self) -> str:
        return (
            f"{self.reason}: {self.message} ({self.iterations} iterations, {self.evaluations} "
            f"evaluations, loss {self.loss:.6g}, gradient {self.gradient_norm:.3g})"
        )
