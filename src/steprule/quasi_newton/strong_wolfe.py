"""The line search of ``torch.optim.LBFGS``: bracket, then zoom, by cubics.

Source: Nocedal and Wright, "Numerical Optimization" (2006), algorithms 3.5 and 3.6, in the form of
M. Schmidt's minFunc that torch follows: its constants and its order of checks are kept, so that
trajectories agree, and what it does where evaluations run out. What differs: a trial that is not
finite is pulled back toward the last finite one, and the path may end at a bound.
"""

from __future__ import annotations

import math

from steprule.quasi_newton.line_search import C1, Line, Trial, cubic_minimum


def strong_wolfe(line: Line, first: float, tolerance: float) -> Trial:
    """Find a step with Armijo's and the strong curvature condition.

    Args:
        line: the line, starting downhill.
        first: the first step tried.
        tolerance: give up when the bracket is shorter than this, in the parameters' units.

    Returns:
        The trial accepted; if evaluations run out, the lower end of the bracket, or of start and
        last trial where there is none yet.
    """
    before = line.start
    trial = line.finite_at(min(first, line.longest), before)
    if trial is None:
        return before
    tries = 0
    while line.left:
        has_risen = tries > 1 and trial.loss >= before.loss
        if not _has_descended(line, trial) or has_risen:
            return _zoom(line, [before, trial], tolerance)
        if line.is_flat(trial):
            return trial
        if trial.slope >= 0:
            return _zoom(line, [before, trial], tolerance)
        if _is_at_end(line, trial):
            break
        farthest = min(10 * trial.step, line.longest)
        if math.isfinite(line.edge):
            farthest = min(farthest, (trial.step + line.edge) / 2)
        nearest = min(trial.step + 0.01 * (trial.step - before.step), farthest)
        step = cubic_minimum(before, trial, nearest, farthest)
        following = line.finite_at(step, trial)
        if following is None:
            break
        before, trial = trial, following
        tries += 1
    return line.lower(line.start, trial)


def _has_descended(line: Line, trial: Trial) -> bool:
    # torch adds in the parameters' dtype: near a minimum it asks for no more than the same loss.
    return trial.loss <= line.rounded(line.start.loss + C1 * trial.step * line.start.slope)


def _is_at_end(line: Line, trial: Trial) -> bool:
    """Tell whether there is nowhere further to go: a bound, or the edge where losses end."""
    return trial.step >= line.longest or line.edge - trial.step <= 1e-3 * trial.step


def _zoom(line: Line, bracket: list[Trial], tolerance: float) -> Trial:
    low = 0 if bracket[0].loss <= bracket[1].loss else 1
    is_stuck = False
    while line.left:
        width = abs(bracket[1].step - bracket[0].step)
        if width * line.reach < tolerance or (tolerance <= 0 and width <= line.resolution):
            break
        ends = sorted(trial.step for trial in bracket)
        step = cubic_minimum(bracket[0], bracket[1], ends[0], ends[1])
        step, is_stuck = _away_from_ends(step, ends, is_stuck)
        trial = line.at(step)
        has_descended = trial.is_finite and _has_descended(line, trial)
        if not has_descended or trial.loss >= bracket[low].loss:
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
