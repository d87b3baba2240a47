"""Steps that one native call can carry out: when they may, and when they no longer may."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Parameter

from steprule.settings import Context, Settings

if TYPE_CHECKING:  # they load the compiler's back end: only when a kernel is there
    from steprule.engines.fused_runner import FusedRunner
    from steprule.engines.native.whole_step import WholeStep

# How often a plan tries again after gradients that the native call could not take.
TRIES = 4


class WholeSteps:
    """Takes a plan's steps by one native call each (``engines/native/whole_step.py``).

    Args:
        context: what the plan was made of.
        settings: of each group; the plan's own list.
        runners: the fused engine's kernels.
        dormant: parameters that had no gradient.
        renew: takes over the groups' new numbers; False if more than numbers has changed.
    """

    def __init__(
        self,
        context: Context,
        settings: Sequence[Settings],
        runners: Sequence[FusedRunner],
        dormant: Sequence[Tensor],
        renew: Callable[[], bool],
    ) -> None:
        self._context, self._settings = context, settings
        self._runners, self._dormant = runners, dormant
        self._renew = renew
        self._whole: WholeStep | None = None
        self._tries = TRIES

    def is_ready(self) -> bool:
        """Whether the next step may be taken so."""
        return self._whole is not None

    def step(self) -> bool:
        """Carry out one step if all is as planned; else do nothing and return False."""
        if self._whole is None:
            return False
        from steprule.engines.native.loops_source import Outcome

        outcome = self._whole.run()
        if outcome == Outcome.GROUPS_CHANGED and self._take_numbers():
            outcome = self._whole.run()
        if outcome != Outcome.AS_PLANNED:
            self._whole = None
        return outcome == Outcome.AS_PLANNED

    def _take_numbers(self) -> bool:
        """Whether nothing but numbers has changed in the groups; these are then in force."""
        return (
            self._whole is not None
            and self._renew()
            and not any(settings.is_mutable for settings in self._settings)
            and all(map(is_, self._lists(), self._watched_lists))
            and self._whole.renew_groups()
        )

    def _lists(self) -> list[Any]:
        return [settings.group["params"] for settings in self._settings]

    def learn(self) -> None:
        """Take the next steps so, if what the last one saw allows it."""
        if (
            self._whole is None
            and self._tries
            and self._runners
            and all(runner.is_watched for runner in self._runners)
            and self._is_plain()
            and self._context.fresh.isdisjoint(p for r in self._runners for p in r.params)
        ):
            from steprule.engines.native.whole_step import WholeStep

            if WholeStep.takes(self._runners):
                self._tries -= 1
                state = self._context.state
                self._watched_lists = self._lists()
                self._whole = WholeStep(self._groups(), state, self._dormant, self._runners)

    def _is_plain(self) -> bool:
        """Whether the native call can see all that may change between two steps."""
        groups = self._context.groups
        return (
            not any(settings.is_mutable for settings in self._settings)
            and all(type(group) is dict and type(group["params"]) is list for group in groups)
            and all(type(param) in (Tensor, Parameter) for param in self._dormant)
        )

    def _groups(self) -> list[tuple[Any, Container[Any] | None]]:
        found: list[tuple[Any, Container[Any] | None]] = [(self._context.groups, None)]
        for settings in self._settings:
            found.append((settings.group, {*settings.keys, "params"}))
            found.append((settings.group["params"], None))
        return found
