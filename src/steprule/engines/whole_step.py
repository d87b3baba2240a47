"""What an engine may offer beside the contract: all of a step in one call, checks included."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from steprule.engines.engine import Runner

#: Stands for any value of a dict.
ANY = object()
# A dict with its items, as known (a value may be ANY); or a list with its items.
Contents = tuple[Any, Sequence[Any]]


class Outcome(enum.IntEnum):
    """What a check of everything that a step rests on found."""

    AS_PLANNED = 0
    GROUPS_CHANGED = 1
    CHANGED = 2
    GRADS_CHANGED = 3  # nothing has changed but what gradients are like
    NOT_NOW = 4  # threads or tensors are such that no such step can be taken
    PASSED_OVER = 5  # all is as planned, but the gradients are such that nothing is to be updated


class GradientGuards(Protocol):
    """What looks at all gradients' sums of squares before anything is updated."""

    #: Whether anything is to be looked at now.
    is_on: bool

    def admits(self) -> bool:
        """Tell whether the step is to be taken, and tell the runners by what to clip.

        Asked when the runners' ``square_sums`` are this step's.
        """


class WholeStep(Protocol):
    """Steps of some runners, each by one call."""

    def run(self, guards: GradientGuards) -> int:
        """Check everything and, if all is as planned, carry out the step; return an Outcome."""

    def renew_groups(self, groups: Sequence[Contents]) -> bool:
        """Take these contents of the groups for what is planned; False if they are not as many."""


@runtime_checkable
class OffersWholeSteps(Protocol):
    """An engine that can."""

    name: str

    def takes_whole_steps(self, runners: Sequence[Runner]) -> bool:
        """Tell whether what was just run allows such steps (asked after each plain one)."""

    def whole_step(
        self,
        groups: Sequence[Contents],
        state: Mapping[Any, Any],
        without_grad: Sequence[Tensor],
        runners: Sequence[Runner],
    ) -> WholeStep:
        """Make such steps of what was just run.

        Args:
            groups: the list of parameter groups, the groups and their lists of parameters, with
                what the runners were told of them.
            state: the optimizer's state.
            without_grad: plain tensors that must not have a gradient.
            runners: this engine's, all of them.
        """
