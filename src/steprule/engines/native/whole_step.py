"""All of a step in one native call: the checks, the kernels, the counting of changes.

Between two native calls Python may let another thread run, which might drop a gradient that the
kernel is about to read; gradients' Python objects would have to be held, and for a thousand small
tensors asking for these takes longer than anything else. Within one call no other Python runs: the
interpreter's lock is kept, which is why only steps of a few milliseconds are taken this way. What
autograd may do without the lock is met by references of torch's own (loops_text.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steprule.engines.native.contents_guard import ContentsGuard
from steprule.engines.native.loops import (
    address_of,
    can_hold_tensors,
    items_of,
    native,
    process_words,
)
from steprule.engines.native.loops_text import Loop, StepWord
from steprule.engines.native.switch import is_audited
from steprule.engines.threads.team import Team, team
from steprule.engines.uninterrupted import uninterrupted
from steprule.engines.whole_step import Contents, GradientGuards, Outcome

# Up to so many elements: a step of Adam then takes a few milliseconds, less than the 5 after which
# Python would have a thread give way to another.
MOST_ELEMENTS = 1 << 22


class NativeRunner(Protocol):
    """What a whole step asks of the fused engine's runners."""

    elements: int

    def guard_block(self, threads: int, *, sums_squares: bool = False) -> array[int] | None:
        """Tell its guard of kernel and threads; None if it can't be used, else its block."""

    def is_sound(self) -> bool:
        """Audit its native guard; False if what that reads may not be relied on."""

    def threads(self) -> int:
        """Return how many threads its kernel is worth now."""


class NativeStep:
    """A step of all that is on the fused engine.

    Args:
        groups: the list of parameter groups, the groups and their lists of parameters, with what
            the kernels were told of them.
        state: the optimizer's state.
        without_grad: plain tensors that must not have a gradient.
        runners: their kernels, all watched.
    """

    def __init__(
        self,
        groups: Sequence[Contents],
        state: Mapping[Any, Any],
        without_grad: Sequence[Tensor],
        runners: Sequence[NativeRunner],
    ) -> None:
        self._runners = runners
        self._without_grad = tuple(without_grad)
        self._state = ContentsGuard([(state, list(state.items()))])
        self._groups = ContentsGuard(groups)
        self._guards = array("q", bytes(8 * len(runners)))
        self._block = array("q", bytes(8 * len(StepWord)))
        words = {
            StepWord.GUARDS: address_of(self._guards),
            StepWord.GUARD_COUNT: len(runners),
            StepWord.GROUPS: self._groups.address,
            StepWord.GROUP_COUNT: self._groups.count,
            StepWord.STATE: self._state.address,
            StepWord.WITHOUT_GRAD: items_of(self._without_grad),
            StepWord.WITHOUT_GRAD_COUNT: len(self._without_grad),
        }
        for place, value in words.items():
            self._block[place] = value
        self._blocks: list[array[int]] = []  # kept alive: the guards' addresses are theirs
        self._threads = -1
        self._runs = 0
        self._team: Any = None
        self._sums_squares = False
        self._is_begun = False

    @staticmethod
    def takes(runners: Sequence[NativeRunner]) -> bool:
        """Tell whether these kernels are so short, and need nothing of Python."""
        few = sum(runner.elements for runner in runners) <= MOST_ELEMENTS
        has_threads = team() is not None or all(runner.threads() == 1 for runner in runners)
        return few and has_threads and can_hold_tensors()

    def renew_groups(self, groups: Sequence[Contents]) -> bool:
        """Take these contents of the groups for what is planned; False if they are not as many."""
        return self._groups.renew(groups)

    def run(self, guards: GradientGuards) -> int:
        """Check everything and, if all is as planned, carry out the step.

        Returns:
            An :class:`~.loops_text.Outcome`; nothing was done but on ``AS_PLANNED``.
        """
        are_guarded = guards.is_on
        self._runs += 1
        if is_audited(self._runs) and not all(runner.is_sound() for runner in self._runners):
            return Outcome.CHANGED
        threads = team()
        is_prepared = (
            torch.get_num_threads() == self._threads
            and threads is self._team
            and (self._sums_squares or not are_guarded)
        )
        if not is_prepared and not self._prepare(threads, are_guarded):
            return Outcome.NOT_NOW
        outcome = array("q", [0])  # one for each call: another thread may step as well
        if self._is_begun:  # by another thread, which holds its gradients
            return Outcome.NOT_NOW
        if are_guarded:
            self._run_in_calls(guards, outcome)
        else:
            self._call(Loop.STEP, outcome)
        return outcome[0]

    def _run_in_calls(self, guards: GradientGuards, outcome: array[int]) -> None:
        """Carry out a step in several calls, for Python is to look at the gradients' norms."""
        with uninterrupted:  # what is begun is released
            self._is_begun = True
            try:
                self._call(Loop.BEGIN, outcome)
                if outcome[0] == Outcome.AS_PLANNED and guards.admits():
                    self._call(Loop.FINISH, outcome)
                elif outcome[0] == Outcome.AS_PLANNED:
                    outcome[0] = Outcome.PASSED_OVER
            finally:
                self._call(Loop.RELEASE, outcome)
                self._is_begun = False

    def _call(self, loop: Loop, outcome: array[int]) -> None:
        native()[loop](address_of(self._block), address_of(process_words()), address_of(outcome), 0)

    def _prepare(self, threads: Team | None, sums_squares: bool) -> bool:
        """Tell the guards of their kernels and threads; False if the step cannot be taken."""
        if not self.takes(self._runners):
            return False
        blocks = [
            runner.guard_block(runner.threads(), sums_squares=sums_squares)
            for runner in self._runners
        ]
        self._blocks = [block for block in blocks if block is not None]
        if len(self._blocks) < len(blocks):
            return False
        for i, block in enumerate(self._blocks):
            self._guards[i] = address_of(block)
        if threads is not None:
            self._block[StepWord.REGION] = threads.region
            self._block[StepWord.ENTRY] = threads.native().addresses[0]
            self._block[StepWord.IS_TORCHS] = threads.is_torchs
        self._threads, self._team = torch.get_num_threads(), threads
        self._sums_squares = sums_squares
        return True
