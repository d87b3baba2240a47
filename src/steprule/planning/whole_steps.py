"""Steps that one native call can carry out: when they may, and when they no longer may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import Parameter

from steprule.planning.settings import Context, Settings

if TYPE_CHECKING:  # they load the compiler's back end: only when a kernel is there
    from steprule.engines.cpu.runner import FusedRunner
    from steprule.engines.native.contents_guard import Thing
    from steprule.engines.native.whole_step import WholeStep

# After so many attempts in a row that came to nothing a plan makes no more.
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
        self._lists: list[list[Tensor]] = []
        self._tries = TRIES
        self._has_stale_numbers = False

    def is_ready(self) -> bool:
        """Whether the next step may be taken so."""
        return self._whole is not None

    def numbers_were_taken(self) -> None:
        """The kernels were told other numbers than the native call knows of."""
        self._has_stale_numbers = True

    def step(self) -> bool:
        """Carry out one step if all is as planned; else do nothing and return False."""
        whole = self._whole
        if whole is None:
            return False
        from steprule.engines.native.loops_text import Outcome

        outcome: int = Outcome.GROUPS_CHANGED
        if not self._has_stale_numbers:
            outcome = whole.run()
        if outcome == Outcome.GROUPS_CHANGED and self._take_numbers(whole):
            outcome = whole.run()
        if outcome == Outcome.AS_PLANNED:
            self._tries = TRIES
            return True
        self._tries -= 1
        if outcome != Outcome.UNLIKE or not self._tries:
            self._whole = None
        return False

    def _take_numbers(self, whole: WholeStep) -> bool:
        """Whether nothing but numbers has changed in the groups; these are then in force."""
        self._has_stale_numbers = True  # until all is done: what is refused may raise
        taken = (
            self._renew()
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
            and self._runners
            and all(runner.is_watched for runner in self._runners)
            and self._is_plain()
            and self._context.fresh.isdisjoint(p for r in self._runners for p in r.params)
        ):
            from steprule.engines.native.whole_step import WholeStep

            if WholeStep.takes(self._runners):
                self._lists = [settings.group["params"] for settings in self._settings]
                state = self._context.state
                self._whole = WholeStep(self._groups(), state, self._dormant, self._runners)
                self._has_stale_numbers = False

    def _is_plain(self) -> bool:
        """Whether the native call can see all that may change between two steps."""
        groups = self._context.groups
        return (
            type(groups) is list
            and isinstance(self._context.state, dict)
            and all(type(group) is dict and type(group["params"]) is list for group in groups)
            and not any(settings.is_mutable for settings in self._settings)
            and all(type(param) in (Tensor, Parameter) for param in self._dormant)
        )

    def _groups(self) -> list[Thing]:
        """What the kernels were told of the groups: not what stands there by now."""
        from steprule.engines.native.contents_guard import ANY

        found: list[Thing] = [(self._context.groups, [s.group for s in self._settings])]
        for settings, params in zip(self._settings, self._lists, strict=True):
            known = dict(zip(settings.keys, settings.signature, strict=True))
            known["params"] = params
            items = [(key, known.get(key, ANY)) for key in settings.group]
            found += [(settings.group, items), (params, settings.params)]
        return found
