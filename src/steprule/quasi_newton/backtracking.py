"""The cheap line search: Armijo's condition alone, shorter steps by interpolation."""

from __future__ import annotations

from steprule.quasi_newton.line_search import Line, Trial

# A step shrinks by no less and no more than this (Dennis and Schnabel's constants).
LEAST, MOST = 0.1, 0.5


def backtracking(line: Line, first: float, tolerance: float) -> Trial:
    """Find a step with ``loss <= loss0 + 1e-4 * step * slope0``.

    Each shorter step minimises the parabola through the start (loss and slope) and the last
    trial's loss, kept within a tenth and a half of that trial's step; halves and less where the
    loss is not finite.

    Args:
        line: the line, starting downhill.
        first: the first step tried; no longer one is.
        tolerance: give up when the step is shorter than this, in the parameters' units.

    Returns:
        The trial accepted, or the start if there is none.

    Source: J. E. Dennis and R. B. Schnabel, "Numerical Methods for Unconstrained Optimization
    and Nonlinear Equations" (1983), section 6.3.2.
    """
    step = min(first, line.longest)
    while line.left and step * line.reach > tolerance:
        trial = line.finite_at(step, line.start)
        if trial is None:
            break
        if line.has_descended(trial):
            return trial
        step = shorter(line.start, trial)
    return line.start


def shorter(start: Trial, trial: Trial) -> float:
    """Return the next step after ``trial`` was too high."""
    excess = trial.loss - start.loss - trial.step * start.slope
    ideal = -start.slope * trial.step**2 / (2 * excess) if excess > 0 else MOST * trial.step
    return min(max(ideal, LEAST * trial.step), MOST * trial.step)
