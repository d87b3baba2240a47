"""Steps that an engine carries out by one call: when they may be, and when they no longer may.

What an engine offers for this is in ``engines/whole_step.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import Parameter

from steprule.distributed.shards import is_sharded
from steprule.engines.engine import Runner
from steprule.engines.whole_step import (
    ANY,
    Contents,
    GradientGuards,
    OffersWholeSteps,
    Outcome,
    WholeStep,
)
from steprule.planning.assignment import NO_ENGINE, Assignment, PlannedRunner
from steprule.planning.settings import Context, Settings

# After so many attempts in a row that came to nothing a plan makes no more.
TRIES = 4

# Takes over the groups' new numbers; False if more than numbers has changed.
Renew = Callable[[], bool]


class WholeSteps:
    """Takes a plan's steps by one call each for the runners of one engine.

    Args:
        context: what the plan was made of.
        settings: of each group; the plan's own list.
        assignments: of all parameters.
        engine: the engine that offers it.
        runners: that engine's.
        others: all other runners, which run after them.
    """

    def __init__(
        self,
        context: Context,
        settings: Sequence[Settings],
        assignments: Sequence[Assignment],
        engine: OffersWholeSteps,
        runners: Sequence[Runner],
        others: Sequence[Runner],
    ) -> None:
        self.others = others
        self._context, self._settings = context, settings
        self._engine, self._runners = engine, runners
        name = engine.name
        self._params = [a.param for a in assignments if a.engine == name]
        self._without_grad = [a.param for a in assignments if a.engine == NO_ENGINE]
        self._whole: WholeStep | None = None
        self._lists: list[list[Tensor]] = []
        self._tries = TRIES
        self._has_stale_numbers = False

    @classmethod
    def of(
        cls,
        context: Context,
        settings: Sequence[Settings],
        assignments: Sequence[Assignment],
        parts: Sequence[PlannedRunner],
    ) -> WholeSteps | None:
        """Return those of the first engine that offers it; None if none does."""
        for part in parts:
            if isinstance(part.engine, OffersWholeSteps):
                engine = part.engine
                runners = [p.runner for p in parts if p.engine is engine]
                others = [p.runner for p in parts if p.engine is not engine]
                return cls(context, settings, assignments, engine, runners, others)
        return None

    def is_ready(self) -> bool:
        """Tell whether the next step may be taken so."""
        return self._whole is not None

    def numbers_were_taken(self) -> None:
        """Note that the runners were told other numbers than the whole step knows of."""
        self._has_stale_numbers = True

    def step(self, renew: Renew, guards: GradientGuards) -> int:
        """Carry out one step if all is as planned and the guards admit it.

        Returns:
            An Outcome; nothing was done but on ``AS_PLANNED``.
        """
        whole = self._whole
        if whole is None:
            return Outcome.NOT_NOW
        outcome: int = Outcome.GROUPS_CHANGED
        if not self._has_stale_numbers:
            outcome = whole.run(guards)
        if outcome == Outcome.GROUPS_CHANGED and self._take_numbers(whole, renew):
            outcome = whole.run(guards)
        if outcome in (Outcome.AS_PLANNED, Outcome.PASSED_OVER):
            self._tries = TRIES
            return outcome
        self._tries -= 1
        if outcome != Outcome.GRADS_CHANGED or not self._tries:
            self._whole = None
        return outcome

    def _take_numbers(self, whole: WholeStep, renew: Renew) -> bool:
        """Put the groups' new numbers in force; False if more than numbers has changed."""
        self._has_stale_numbers = True  # until all is done: what is refused may raise
        taken = (
            renew()
            and not any(settings.is_mutable for settings in self._settings)
            and whole.renew_groups(self._groups())
        )
        self._has_stale_numbers = not taken
        return taken

    def learn(self) -> None:
        """Take the next steps so, if what the last one saw allows it."""
        if (
            self._whole is None
            and self._tries
            and self._engine.takes_whole_steps(self._runners)
            and self._is_plain()
            and self._context.fresh.isdisjoint(self._params)
        ):
            self._lists = [settings.group["params"] for settings in self._settings]
            self._whole = self._engine.whole_step(
                self._groups(), self._context.state, self._without_grad, self._runners
            )
            self._has_stale_numbers = False

    def _is_plain(self) -> bool:
        """Tell whether the call can see all that may change between two steps."""
        groups = self._context.groups
        return (
            type(groups) is list
            and isinstance(self._context.state, dict)
            and all(type(group) is dict and type(group["params"]) is list for group in groups)
            and not any(settings.is_mutable for settings in self._settings)
            and all(
                type(param) in (Tensor, Parameter) or is_sharded(param)
                for param in self._without_grad
            )
        )

    def _groups(self) -> list[Contents]:
        """Return what the runners were told of the groups: not what stands there by now."""
        found: list[Contents] = [(self._context.groups, [s.group for s in self._settings])]
        for settings, params in zip(self._settings, self._lists, strict=True):
            known = dict(zip(settings.keys, settings.signature, strict=True))
            known["params"] = params
            items = [(key, known.get(key, ANY)) for key in settings.group]
            found += [(settings.group, items), (params, settings.params)]
        return found
