"""The iterations of one step: learn a pair, take a direction, move, see whether to stop."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from steprule.quasi_newton.line_search import Line
from steprule.quasi_newton.memory import Memory
from steprule.quasi_newton.objective import Evaluation, Objective
from steprule.quasi_newton.options import LINE_SEARCHES, Options
from steprule.quasi_newton.ranks import largest_entry
from steprule.quasi_newton.result import Reason
from steprule.quasi_newton.space import Space

# torch learns a pair if y's is above this, whatever the scale of the problem.
TORCH_CURVATURE = 1e-10
# How often a fixed step is halved where the loss is not finite.
HALVINGS = 30


class Stop(NamedTuple):
    """How the iterations ended."""

    reason: Reason
    iterations: int
    loss: float
    gradient_norm: float


class Iterations:
    """One call of ``step``: from the parameters as they are to where it stops.

    Args:
        objective: evaluates the closure.
        memory: what earlier steps left; changed.
        options: the options of the whole problem.
        space: what groups and bounds make of directions.
    """

    def __init__(
        self, objective: Objective, memory: Memory, options: Options, space: Space
    ) -> None:
        self._objective = objective
        self._memory = memory
        self._options = options
        self._space = space
        self._search = LINE_SEARCHES[options.line_search_fn]
        self._point = objective.layout.gather()
        self._ranks = objective.layout.ranks
        self._done = 0
        self._reach: float | None = None  # the largest entry of memory.direction, where known

    def run(self) -> Stop:
        """Iterate until a tolerance, a limit or a failure."""
        now = first = self._start()
        start = self._point
        if not now.is_finite:
            return self._stop("not_finite", now)
        reason, now = self._descend(now)
        if self._search is not None and now.loss > first.loss:
            # Only rounding can have raised it, and the promise is to the last bit.
            self._put(start)
            self._memory.step = 0.0
            return self._stop("line_search", first)
        return self._stop(reason, now)

    def _descend(self, now: Evaluation) -> tuple[Reason, Evaluation]:
        if self._norm(now) <= self._options.tolerance_grad:
            return "gradient", now
        while self._done < self._options.max_iter:
            self._done += 1
            self._memory.n_iter += 1
            self._learn(now)
            direction, slope = self._direction(now)
            first = self._first_step(direction)
            self._remember(now, direction)
            if slope > -self._options.tolerance_change:
                return "change", now
            if not (self._objective.left or self._search is None or self._options.may_exceed):
                return "evaluations", now
            following = self._move(now, direction, slope, first)
            if isinstance(following, Evaluation):
                reason = self._reason_to_stop(now, following)
                now = following
                if reason is not None:
                    return reason, now
            elif following is not None:
                return following, now
        return "iterations", now

    def _stop(self, reason: Reason, now: Evaluation) -> Stop:
        return Stop(reason, self._done, self._objective.user_loss(now.loss), self._norm(now))

    def _norm(self, now: Evaluation) -> float:
        if self._space.is_plain or not now.is_finite:
            return now.norm
        return self._space.gradient_norm(self._point, now.grad)

    def _start(self) -> Evaluation:
        """Return the evaluation to start from: here, or nearer to the last good point."""
        if self._space.box is not None:
            inside = self._space.box.project(self._point)
            if not torch.equal(inside, self._point):
                self._put(inside)
        now = self._objective.here()
        memory = self._memory
        good, memory.last_point = memory.last_point, None
        if now.is_finite or good is None or memory.direction is None:
            return now
        expected = torch.add(good, memory.direction, alpha=memory.step)
        if self._ranks.any(not torch.allclose(expected, self._point)):
            return now  # someone else put the parameters here
        here, self._point = self._point, good
        found = self._halved(good, here - good, 0.5)
        return now if found is None else found

    def _learn(self, now: Evaluation) -> None:
        """Add the last step and the change of gradient over it to the history."""
        memory = self._memory
        if memory.direction is None or memory.prev_grad is None:
            return
        history = memory.history
        step = history.rounded(memory.direction * memory.step)
        change = history.rounded(now.grad - memory.prev_grad)
        history.learn(step, change, TORCH_CURVATURE if self._options.follows_torch else None)

    def _direction(self, now: Evaluation) -> tuple[Tensor, float]:
        """Return the direction, and the derivative of the loss along it."""
        history = self._memory.history
        direction, slope = self._space.direction(history, self._point, now.grad)
        is_bad = not math.isfinite(slope) or (slope >= 0 and not self._options.follows_torch)
        if len(history) and is_bad:  # rounding has spoilt the history
            history.clear()
            direction, slope = self._space.direction(history, self._point, now.grad)
        return direction, slope

    def _first_step(self, direction: Tensor) -> float:
        """lr, shortened where nothing is known yet of the scale."""
        memory = self._memory
        is_first = memory.direction is None if self._options.follows_torch else not memory.history
        # Of the direction, not the gradient: a frozen or held part may have any gradient.
        length = self._ranks.absolute_sum(direction) if is_first else 0.0
        return min(1.0, 1.0 / length) * self._options.lr if length > 1.0 else self._options.lr

    def _remember(self, now: Evaluation, direction: Tensor) -> None:
        memory = self._memory
        memory.prev_grad, memory.prev_loss = now.grad, now.loss
        memory.direction, memory.step = direction, 0.0

    def _move(
        self, now: Evaluation, direction: Tensor, slope: float, first: float
    ) -> Evaluation | Reason | None:
        """Move; return what is known there, or why not, or None to try again."""
        if self._search is None:
            return self._move_by(direction, first)
        found = self._searched(now, direction, slope, first)
        if found is not None:
            return found
        self._put(self._point)
        if not self._objective.left:
            return "evaluations"
        if self._options.follows_torch or not len(self._memory.history):
            return "line_search"
        self._memory.history.clear()  # once more, along the gradient
        self._memory.direction = None
        return None

    def _searched(
        self, now: Evaluation, direction: Tensor, slope: float, first: float
    ) -> Evaluation | None:
        """Search the line, or the path that bends at the bounds; None if nothing is lower."""
        assert self._search is not None
        longest = math.inf
        if self._space.box is not None:
            longest = self._space.box.room(self._point, direction)
            if longest < first:
                bent = self._space.box.search(self._objective, self._point, direction, now, first)
                if bent is None:
                    return None
                self._arrive(bent[0], direction=bent[0] - self._point, step=1.0)
                return bent[1]
        # torch counts the trials that follow the first one.
        trials = self._objective.left + self._options.may_exceed
        line = Line(self._objective, self._point, direction, now, slope, trials, longest)
        trial = self._search(line, first, self._options.tolerance_change)
        if trial.step == 0.0:
            return None
        self._arrive(self._ahead(direction, trial.step), direction, trial.step, line.reach)
        return trial.evaluation

    def _move_by(self, direction: Tensor, step: float) -> Evaluation | Reason:
        """Move by a fixed step; do not look where no iteration follows, as in torch."""
        before = self._point
        self._arrive(self._ahead(direction, step), direction, step)
        moved = self._memory.direction
        is_last = self._done == self._options.max_iter
        if is_last or not (self._objective.left or self._options.may_exceed):
            self._memory.last_point = before
            return "iterations" if is_last else "evaluations"
        assert moved is not None
        found = self._objective.here(largest=(largest_entry(moved),))
        if found.is_finite:
            self._reach = found.largest[0]
            return found
        move, self._point = self._point - before, before
        return self._halved(before, move, 0.5) or "not_finite"

    def _halved(self, base: Tensor, move: Tensor, step: float) -> Evaluation | None:
        """Go back to the first finite point towards ``base``; None, at ``base``, if none is."""
        for _ in range(HALVINGS):
            if not self._objective.left:
                break
            found = self._objective.at(torch.add(base, move, alpha=step))
            if found.is_finite:
                self._arrive(torch.add(base, move, alpha=step), move, step)
                return found
            step /= 2
        self._put(base)
        self._memory.step = 0.0
        return None

    def _ahead(self, direction: Tensor, step: float) -> Tensor:
        target = torch.add(self._point, direction, alpha=step)
        return target if self._space.box is None else self._space.box.project(target)

    def _arrive(
        self, target: Tensor, direction: Tensor, step: float, reach: float | None = None
    ) -> None:
        """Put the parameters at the target; remember the move that was really made.

        ``reach`` is the largest entry of the direction, where it is known.
        """
        before = self._point
        self._put(target)
        self._memory.direction, self._memory.step, self._reach = direction, step, reach
        if self._space.box is not None or not self._objective.layout.is_exact:
            self._memory.direction, self._memory.step = self._point - before, 1.0
            self._reach = None

    def _put(self, point: Tensor) -> None:
        layout = self._objective.layout
        layout.scatter(point)
        self._point = point if layout.is_exact else layout.gather()

    def _reason_to_stop(self, before: Evaluation, now: Evaluation) -> Reason | None:
        options, memory = self._options, self._memory
        if self._norm(now) <= options.tolerance_grad:
            return "gradient"
        if self._done >= options.max_iter:
            return "iterations"
        if not self._objective.left:
            return "evaluations"
        assert memory.direction is not None
        if self._reach is None:
            self._reach = self._ranks.largest_entry(memory.direction)
        moved = self._reach * abs(memory.step)
        small = options.tolerance_change
        if moved <= small or abs(now.loss - before.loss) < small:
            return "change"
        return None
