"""The line search of ``torch.optim.LBFGS``: bracket, then zoom, by cubics.

Source: Nocedal and Wright, "Numerical Optimization" (2006), algorithms 3.5 and 3.6, in the form of
M. Schmidt's minFunc that torch follows: its constants and its order of checks are kept, so that
trajectories agree. What differs: evaluations never exceed ``max_eval``, a trial that is not finite
is pulled back toward the last finite one, and the path may end at a bound.
"""

from __future__ import annotations

import math

from steprule.quasi_newton.line_search import Line, Trial, cubic_minimum


def strong_wolfe(line: Line, first: float, tolerance: float) -> Trial:
    """Find a step with Armijo's and the strong curvature condition.

    Args:
        line: the line, starting downhill.
        first: the first step tried.
        tolerance: give up when the bracket is shorter than this, in the parameters' units.

    Returns:
        The trial accepted, or the lowest seen if evaluations run out.
    """
    before = line.start
    trial = line.finite_at(min(first, line.longest), before)
    if trial is None:
        return before
    tries = 0
    while True:
        has_risen = tries > 1 and trial.loss >= before.loss
        if not line.has_descended(trial) or has_risen:
            return _zoom(line, [before, trial], tolerance)
        if line.is_flat(trial):
            return trial
        if trial.slope >= 0:
            return _zoom(line, [before, trial], tolerance)
        if not line.left or _is_at_end(line, trial):
            return line.lower(line.start, trial)
        farthest = min(10 * trial.step, line.longest)
        if math.isfinite(line.edge):
            farthest = min(farthest, (trial.step + line.edge) / 2)
        nearest = min(trial.step + 0.01 * (trial.step - before.step), farthest)
        step = cubic_minimum(before, trial, nearest, farthest)
        following = line.finite_at(step, trial)
        if following is None:
            return line.lower(line.start, trial)
        before, trial = trial, following
        tries += 1


def _is_at_end(line: Line, trial: Trial) -> bool:
    """Whether there is nowhere further to go: a bound, or the edge where losses end."""
    return trial.step >= line.longest or line.edge - trial.step <= 1e-3 * trial.step


def _zoom(line: Line, bracket: list[Trial], tolerance: float) -> Trial:
    low = 0 if bracket[0].loss <= bracket[1].loss else 1
    is_stuck = False
    while line.left:
        width = abs(bracket[1].step - bracket[0].step)
        if width * line.reach < tolerance or width <= line.resolution:
            break
        ends = sorted(trial.step for trial in bracket)
        step = cubic_minimum(bracket[0], bracket[1], ends[0], ends[1])
        step, is_stuck = _away_from_ends(step, ends, is_stuck)
        trial = line.at(step)
        if not trial.is_finite or not line.has_descended(trial) or trial.loss >= bracket[low].loss:
            bracket[1 - low] = trial
            low = 0 if not bracket[1].is_finite or bracket[0].loss <= bracket[1].loss else 1
            if not bracket[low].is_finite:
                low = 1 - low
            continue
        if line.is_flat(trial):
            return trial
        if trial.slope * (bracket[1 - low].step - bracket[low].step) >= 0:
            bracket[1 - low] = bracket[low]
        bracket[low] = trial
    return bracket[low]


def _away_from_ends(step: float, ends: list[float], is_stuck: bool) -> tuple[float, bool]:
    """Move a step that lies twice running within a tenth of an end to that tenth."""
    margin = 0.1 * (ends[1] - ends[0])
    if min(ends[1] - step, step - ends[0]) >= margin:
        return step, False
    if not (is_stuck or step >= ends[1] or step <= ends[0]):
        return step, True
    nearer_right = abs(step - ends[1]) < abs(step - ends[0])
    return (ends[1] - margin if nearer_right else ends[0] + margin), False
