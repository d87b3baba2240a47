"""All of a step in one native call: the checks, the kernels, the counting of changes.

Between two native calls Python may let another thread run, which might drop a gradient that the
kernel is about to read; gradients' Python objects would have to be held, and for a thousand small
tensors asking for these takes longer than anything else. Within one call nothing else runs: the
interpreter's lock is kept, which is why only steps of a few milliseconds are taken this way.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from steprule.engines.native.contents import Contents
from steprule.engines.native.loops import address_of, items_of, native, world
from steprule.engines.native.loops_source import Loop, Outcome, Whole
from steprule.engines.team import team

# Up to so many elements: a step of Adam then takes a few milliseconds, less than the 5 after which
# Python would have a thread give way to another.
MOST_ELEMENTS = 1 << 22

Things = Sequence[tuple[Any, Container[Any] | None]]


class Runner(Protocol):
    """What a whole step asks of the fused engine's runners."""

    elements: int

    def watched_block(self, threads: int) -> array[int] | None:
        """The block of its watch, told of its kernel and so many threads; None if not watched."""

    def threads(self) -> int:
        """How many threads its kernel is worth now."""


class WholeStep:
    """A step of an optimizer all of whose parameters are on the fused engine.

    Args:
        groups: the parameter groups with the keys that matter, and their lists of parameters.
        state: the optimizer's state.
        dormant: plain tensors that must not have a gradient.
        runners: their kernels, all watched.
    """

    def __init__(
        self, groups: Things, state: Any, dormant: Sequence[Tensor], runners: Sequence[Runner]
    ) -> None:
        self._runners = runners
        self._dormant = tuple(dormant)
        self._state = Contents([(state, state)])
        self._block = array("q", bytes(8 * len(Whole)))
        self._block[Whole.STATE] = self._state.address
        self._block[Whole.DORMANT] = items_of(self._dormant)
        self._block[Whole.DORMANT_COUNT] = len(self._dormant)
        self._outcome = array("q", [0])
        self._for = (address_of(self._block), address_of(world()), address_of(self._outcome), 0)
        self._threads = -1
        self._crew: Any = None
        self._groups = Contents(groups)
        self._block[Whole.GROUPS] = self._groups.address
        self._block[Whole.GROUP_COUNT] = self._groups.count

    @staticmethod
    def takes(runners: Sequence[Runner]) -> bool:
        """Whether these kernels are so short, and their threads to be had without Python."""
        few = sum(runner.elements for runner in runners) <= MOST_ELEMENTS
        return few and all(runner.threads() == 1 or team() is not None for runner in runners)

    def renew_groups(self) -> bool:
        """Take the groups' present numbers for what is planned; False if more has changed."""
        return self._groups.renew()

    def run(self) -> int:
        """Check everything and, if all is as planned, carry out the step.

        Returns:
            An :class:`~.loops_source.Outcome`; nothing was done but on ``AS_PLANNED``.
        """
        crew = team()
        is_prepared = torch.get_num_threads() == self._threads and crew is self._crew
        if not is_prepared and not (self.takes(self._runners) and self._prepare(crew)):
            return Outcome.UNLIKE
        native()[Loop.STEP](*self._for)
        return self._outcome[0]

    def _prepare(self, crew: Any) -> bool:
        blocks = [runner.watched_block(runner.threads()) for runner in self._runners]
        if None in blocks:
            return False
        self._blocks = blocks
        self._watches = array("q", [address_of(block) for block in blocks if block is not None])
        self._block[Whole.WATCHES] = address_of(self._watches)
        self._block[Whole.WATCH_COUNT] = len(self._watches)
        if crew is not None:
            self._block[Whole.REGION], self._block[Whole.ENTRY] = crew.region, crew.entry
        self._threads, self._crew = torch.get_num_threads(), crew
        return True
