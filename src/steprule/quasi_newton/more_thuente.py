"""The robust line search: More and Thuente's.

Source: J. J. More and D. J. Thuente, "Line search algorithms with guaranteed sufficient
decrease", ACM Transactions on Mathematical Software 20 (1994), section 2 (updating the interval,
the modified function) and section 4 (trial values); constants as L-BFGS-B uses them (C. Zhu,
R. H. Byrd, P. Lu, J. Nocedal, algorithm 778, 1997). Added: a trial that is not finite shortens
the line, and near the minimum, where losses agree to rounding, slopes alone decide (W. W. Hager
and H. Zhang, "A new conjugate gradient method with guaranteed descent and an efficient line
search", SIAM Journal on Optimization 16, 2005, equation (4.1)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from steprule.quasi_newton.line_search import Line, Trial

DECREASE = 1e-3
CURVATURE = 0.9
# The interval must shrink to two thirds in two trials, or it is halved.
SHRINK = 0.66
NEAREST, FARTHEST = 1.1, 4.0
# An interval narrower than this part of its upper end is good enough: its best end is taken.
NARROW = 0.1
LONGEST = 1e10
# A trial that is not finite is followed by one this part of the way to it.
RETREAT = 0.3


@dataclass(frozen=True)
class _Sample:
    """A trial as the interval sees it: of the loss, or of the modified function."""

    step: float
    loss: float
    slope: float


@dataclass
class _Interval:
    """The best step so far, the other end, and whether a minimum is known to lie between."""

    best: _Sample
    other: _Sample
    is_bracket: bool = False

    def width(self) -> float:
        return abs(self.other.step - self.best.step)


def more_thuente(line: Line, first: float, tolerance: float) -> Trial:
    """Find a step with ``loss <= loss0 + 1e-3 step slope0`` and ``|slope| <= 0.9 |slope0|``.

    Args:
        line: the line, starting downhill.
        first: the first step tried.
        tolerance: give up where even steps shorter than this, in the parameters' units, have no
            finite loss.

    Returns:
        The trial accepted, or the lowest seen where it had to give up.
    """
    start = line.start
    drop = DECREASE * start.slope
    origin = _Sample(0.0, start.loss, start.slope)
    interval = _Interval(origin, origin)
    longest = min(line.longest, LONGEST)
    widths = (math.inf, math.inf)
    low, high = 0.0, FARTHEST * first + first
    is_first_stage = True
    lowest, step = start, min(first, longest)
    while line.left:
        trial = line.at(step)
        if not trial.is_finite:
            # Nothing is known but that the line ends before here.
            longest = interval.best.step + RETREAT * (step - interval.best.step)
            if not interval.best.step < longest or longest * line.reach <= tolerance:
                break
            step = longest
            continue
        lowest = _lowest(lowest, trial)
        armijo = start.loss + step * drop
        if _is_accepted(line, trial, armijo):
            return trial
        if step == longest and trial.loss <= armijo and trial.slope <= drop:
            break  # still falling at the end of the line
        if is_first_stage and trial.loss <= armijo and trial.slope >= 0:
            is_first_stage = False
        shift = drop if is_first_stage and interval.best.loss >= trial.loss > armijo else 0.0
        step = _updated(interval, _Sample(step, trial.loss, trial.slope), shift, low, high)
        if interval.is_bracket:
            if interval.width() >= SHRINK * widths[0]:
                step = interval.best.step + 0.5 * (interval.other.step - interval.best.step)
            widths = (widths[1], interval.width())
            low = min(interval.best.step, interval.other.step)
            high = max(interval.best.step, interval.other.step)
        else:
            low = step + NEAREST * (step - interval.best.step)
            high = step + FARTHEST * (step - interval.best.step)
        step = min(max(step, 0.0), longest)
        if interval.is_bracket and (not low < step < high or high - low <= NARROW * high):
            break
    return lowest


def _lowest(one: Trial, other: Trial) -> Trial:
    if other.loss == one.loss:  # equal to rounding: the flatter one is nearer to the minimum
        return other if abs(other.slope) < abs(one.slope) else one
    return other if other.loss < one.loss else one


def _is_accepted(line: Line, trial: Trial, armijo: float) -> bool:
    if not line.is_flat(trial, CURVATURE):
        return False
    if trial.loss <= armijo:
        return True
    # Slopes see a decrease that the losses' last digits no longer show.
    is_level = trial.loss <= line.start.loss + line.noise
    return is_level and trial.slope <= (2 * DECREASE - 1) * line.start.slope


def _updated(interval: _Interval, trial: _Sample, shift: float, low: float, high: float) -> float:
    """Put the trial into the interval; return the next step.

    With ``shift`` not 0 all three are taken of ``loss - shift * step``, the paper's modified
    function, while no step has yet both a sufficient decrease and a slope that is not negative.
    """
    best, other, new = (
        _Sample(s.step, s.loss - shift * s.step, s.slope - shift)
        for s in (interval.best, interval.other, trial)
    )
    step, closes = _next_step(best, other, new, interval.is_bracket, low, high)
    if new.loss > best.loss:
        interval.other = trial
    else:
        if new.slope * best.slope < 0:
            interval.other = interval.best
        interval.best = trial
    interval.is_bracket = interval.is_bracket or closes
    return step


def _next_step(
    best: _Sample, other: _Sample, new: _Sample, is_bracket: bool, low: float, high: float
) -> tuple[float, bool]:
    """Return the paper's four cases: the next step, and whether a minimum is now enclosed."""
    gap = new.step - best.step
    if new.loss > best.loss:  # case 1: the minimum is between
        cubic, parabola = _cubic(best, new), _parabola(best, new)
        if abs(cubic - best.step) < abs(parabola - best.step):
            return cubic, True
        return cubic + (parabola - cubic) / 2, True
    if new.slope * best.slope < 0:  # case 2: lower, and the slope has changed sign
        cubic, secant = _cubic(new, best), _secant(new, best)
        return (cubic if abs(cubic - new.step) > abs(secant - new.step) else secant), True
    if abs(new.slope) < abs(best.slope):  # case 3: lower and flatter
        secant = _secant(new, best)
        cubic = _cubic_beyond(best, new, high if gap > 0 else low)
        if is_bracket:
            step = cubic if abs(cubic - new.step) < abs(secant - new.step) else secant
            limit = new.step + SHRINK * (other.step - new.step)
            return (min(limit, step) if gap > 0 else max(limit, step)), False
        step = cubic if abs(cubic - new.step) > abs(secant - new.step) else secant
        return min(max(step, low), high), False
    if is_bracket:  # case 4: lower and no flatter
        return _cubic(new, other), False
    return (high if gap > 0 else low), False


def _theta(a: _Sample, b: _Sample) -> float:
    return 3 * (a.loss - b.loss) / (b.step - a.step) + a.slope + b.slope


def _root(theta: float, a: _Sample, b: _Sample) -> float:
    """sqrt(theta^2 - a' b'), scaled so that it does not overflow; 0 where negative."""
    scale = max(abs(theta), abs(a.slope), abs(b.slope))
    if scale == 0:
        return 0.0
    return scale * math.sqrt(max(0.0, (theta / scale) ** 2 - a.slope / scale * (b.slope / scale)))


def _cubic(a: _Sample, b: _Sample) -> float:
    """Return the minimum, seen from ``a``, of the cubic through both losses and slopes."""
    theta = _theta(a, b)
    gamma = math.copysign(_root(theta, a, b), b.step - a.step)
    below = gamma - a.slope + gamma + b.slope
    return a.step + (gamma - a.slope + theta) / below * (b.step - a.step) if below else b.step


def _cubic_beyond(best: _Sample, new: _Sample, limit: float) -> float:
    """Return the cubic's minimum if it lies beyond ``new``, else ``limit``."""
    theta = _theta(best, new)
    gamma = math.copysign(_root(theta, best, new), best.step - new.step)
    below = gamma + (best.slope - new.slope) + gamma
    ratio = (gamma - new.slope + theta) / below if below else 0.0
    return new.step + ratio * (best.step - new.step) if ratio < 0 and gamma != 0 else limit


def _parabola(a: _Sample, b: _Sample) -> float:
    """Return the minimum of the parabola through both losses and the slope at ``a``."""
    below = (a.loss - b.loss) / (b.step - a.step) + a.slope
    return a.step + a.slope / below / 2 * (b.step - a.step) if below else b.step


def _secant(a: _Sample, b: _Sample) -> float:
    """Return where the line through both slopes is zero."""
    below = a.slope - b.slope
    return a.step + a.slope / below * (b.step - a.step) if below else b.step
