"""From parameters to runners, kept from step to step.

A plan is made when the optimizer first steps and again when anything it rests on has changed:
a group's parameters or flags, a state dict that was replaced, a tensor that moved. A change of
numbers alone (a schedule's new lr) only refreshes the runners' numbers. It knows no engine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from steprule.engines import registry
from steprule.engines.dispatch_modes import is_watched
from steprule.engines.engine import Leaf, Runner, runner_note
from steprule.engines.guards.identity import IdentityGuard
from steprule.engines.uninterrupted import uninterrupted
from steprule.engines.whole_step import Outcome
from steprule.planning.assignment import (
    NO_ENGINE,
    NO_GRADIENT,
    Assignment,
    PlannedRunner,
    assign,
    tell_numbers,
)
from steprule.planning.gradient_guards import GradientGuards
from steprule.planning.leaf_checks import checked_leaves, make_state
from steprule.planning.rank_sums import RefusedElsewhereError
from steprule.planning.scaling import CalledOffOnDevice, KnowsFirstUpdates, Scaling
from steprule.planning.settings import Context, Settings, differ, outline_of, settings_of
from steprule.planning.spread import Spread
from steprule.planning.staged_run import shared_by_rule
from steprule.planning.whole_steps import WholeSteps
from steprule.state.making import unchanged_state


class PassedOver(Exception):  # noqa: N818  # not an error: told to the optimizer alone
    """The guards do not admit the step that a plan was made for; nothing is changed."""


class Plan:
    """Who updates what at the next steps, as long as all is as it was.

    Args:
        context: the optimizer's parts.
        for_step: whether a step is to follow at once, so that the guards must admit it.

    Raises:
        RuntimeError: a gradient or state that cannot be taken, named; nothing is changed.
        PassedOver: the guards do not admit the step.
    """

    def __init__(self, context: Context, *, for_step: bool = False) -> None:
        self.context = context
        groups = range(len(context.groups))
        # Steps in the backward pass are clipped by norms that are known.
        meets = context.norms is None
        try:
            self.settings = [settings_of(context, i) for i in groups]
        except BaseException:
            if for_step:
                with contextlib.suppress(Exception):  # of what this rank raises, not of that
                    outlines = [outline_of(context, i) for i in groups]
                    Spread(outlines, context.owners, meets=meets).refuse()
            raise
        self._spread = Spread(self.settings, context.owners, meets=meets)
        self._made: list[Tensor] = []
        with contextlib.nullcontext() if for_step else self._spread.quiet():
            self._make(context, for_step=for_step)

    def _make(self, context: Context, *, for_step: bool) -> None:
        """Make the state that is missing, and the runners."""
        try:
            leaves = checked_leaves(context, self.settings, self._spread.taken_apart)
            with unchanged_state(context.state, context.fresh):
                self._made = [leaf.owner for leaf in leaves if leaf.owner not in context.state]
                for leaf in leaves:
                    make_state(context, leaf, self.settings[leaf.group])
                self._plan(leaves)
                if for_step and not self._are_admitted():
                    raise PassedOver
        except BaseException:
            if for_step:
                self.refuse()
            raise

    def _plan(self, leaves: Sequence[Leaf]) -> None:
        """Assign checked leaves with all their state to runners, and take their gradients."""
        context = self.context
        self._is_watched = is_watched()
        spread = self._spread
        assigned, self._parts = assign(
            leaves, self.settings, spread.shards, by_address=not self._is_watched
        )
        # A rule whose sums ranks share is run for them even where nothing here has a gradient.
        self._in_stages = shared_by_rule(self._parts, spread.with_sums, spread.rule_ranks)
        in_stages = {id(part) for together in self._in_stages for part in together.parts}
        self._alone = [part for part in self._parts if id(part) not in in_stages]
        self._params = [leaf.owner for leaf in leaves]
        has_grad = {(leaf.group, leaf.position) for leaf in leaves}
        without = [
            Assignment(param, i, position, NO_ENGINE, NO_GRADIENT)
            for i, settings in enumerate(self.settings)
            for position, param in enumerate(settings.params)
            if (i, position) not in has_grad and context.has(param)
        ]
        self.assignments = [*assigned, *without, *self._elsewhere()]
        self._without_grad = [assignment.param for assignment in without]
        self._same_states = IdentityGuard(context.state.values())
        self._guards = GradientGuards(
            self.settings,
            self._parts,
            context.record,
            context.origin,
            context.norms,
            spread,
        )
        for i in range(len(self.settings)):
            self._tell_numbers(i)
        self._whole = None
        # Where ranks meet in the midst of a step, nothing is to be updated before they do.
        meets = spread.owners is not None or any(one.levels for one in self._in_stages)
        if context.scaling is None and not meets:
            self._whole = WholeSteps.of(context, self.settings, self.assignments, self._parts)
        # Whether nothing but whole steps is taken, to which autograd is nothing.
        self.ignores_autograd = self._whole is not None and not self._whole.others
        others = () if self._whole is None else self._whole.others
        self._beside_whole = [part for part in self._alone if part.runner in others]
        self._runners = [part.runner for part in self._parts]
        if not all(runner.collect() for runner in self._runners):
            raise RuntimeError(
                "a gradient or parameter has no memory (its storage was freed): "
                "compute the gradients again before step()"
            )

    def _elsewhere(self) -> list[Assignment]:
        """Return the parameters that other ranks update, each having all of them."""
        owners = self._spread.owners
        if owners is None:
            return []
        return [
            Assignment(param, i, position, f"rank {owners.parts[param].rank}", "its state is there")
            for i, settings in enumerate(self.settings)
            for position, param in enumerate(settings.params)
            if not owners.has(param)
        ]

    def _tell_numbers(self, group: int) -> None:
        guards = self._guards
        tell_numbers(self._parts, self.settings, group, guards.factors[group], guards.grad_scale)

    def step_whole(self) -> bool | None:
        """Carry out one step by what an engine offers for that, if all is as planned.

        Returns:
            None if it is not, False if the guards do not admit the step: nothing is done then.
        """
        whole = self._whole
        if whole is None or not whole.is_ready() or is_watched():
            return None
        if not all(runner.collect() for runner in whole.others):
            return None
        if not whole.others:  # one call: signals come before it or after it
            return self._done_whole(whole)
        with uninterrupted:
            return self._done_whole(whole)

    def _done_whole(self, whole: WholeSteps) -> bool | None:
        outcome = whole.step(self._groups_hold, self._guards)
        if outcome == Outcome.PASSED_OVER:
            self.let_go()
            self._spread.end_step()
            return False
        if outcome != Outcome.AS_PLANNED:
            return None
        self._run(self._beside_whole)
        self._count_first_updates(self._params)
        self._spread.end_step()
        return True

    def collect(self) -> bool:
        """Take this step's numbers and gradients; False if the plan no longer fits."""
        return (
            is_watched() == self._is_watched
            and self._groups_hold()
            and self._states_hold()
            and not any(param.grad is not None for param in self._without_grad)
            and all(runner.collect() for runner in self._runners)
        )

    def still_fits(self) -> bool:
        """Tell whether the plan still fits, for who does not mean to run it."""
        try:
            with self._spread.quiet():
                return self.collect()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """Keep no gradient alive."""
        for runner in self._runners:
            runner.let_go()

    def _groups_hold(self) -> bool:
        groups = self.context.groups
        return len(groups) == len(self.settings) and all(
            self._group_holds(i, group) for i, group in enumerate(groups)
        )

    def _group_holds(self, i: int, group: dict[str, Any]) -> bool:
        """Pass on a group's new numbers; False if its parameters or flags are not as planned."""
        settings = self.settings[i]
        params = group["params"]
        if group is not settings.group:
            return False
        if not settings.same_params.holds(params):
            return False
        now = tuple(map(group.get, settings.keys))
        if settings.is_mutable or differ(now, settings.signature):
            try:
                return self._take_numbers(i, settings, now)
            except BaseException:  # an interrupt: what is known here was not told to all
                unknown = object()
                self.settings[i].signature = (unknown,) * len(now)
                raise
        settings.signature = now  # equal, perhaps other objects
        return True

    def _take_numbers(self, i: int, settings: Settings, now: tuple[Any, ...]) -> bool:
        """Tell all of a group's new numbers; False if more than numbers has changed."""
        if not settings.take_numbers(now):
            renewed = settings_of(self.context, i)
            if not renewed.is_as_planned(settings):
                return False
            self.settings[i] = renewed
            self._guards.settings_changed()
        if self._whole is not None:
            self._whole.numbers_were_taken()
        self._tell_numbers(i)
        return True

    def _states_hold(self) -> bool:
        return self._same_states.holds(tuple(self.context.state.values()))

    def settle_first_updates(self) -> None:
        """Ask the device which parameters were never updated, where only it knows."""
        for runner in self._runners:
            left = runner.first_updates_left() if isinstance(runner, KnowsFirstUpdates) else None
            if left is not None:
                self.context.fresh.update(left)

    def runners_in_graphs(self) -> list[Runner]:
        """Return those of which a captured graph may run the kernels again."""
        return [runner for runner in self._runners if getattr(runner, "is_in_a_graph", False)]

    @property
    def runners(self) -> Sequence[Runner]:
        """All runners, in the order in which they were made."""
        return self._runners

    def notes(self) -> list[str]:
        """Return what there is to say of runners, and of what ranks send each other in a step."""
        notes = [note for note in map(runner_note, self._runners) if note]
        notes += [note for together in self._in_stages for note in together.notes()]
        return notes + self._spread.notes()

    def fallen_back(self) -> list[Assignment]:
        """Return the parameters whose engine is not the one that their group asked for by name."""
        return [
            assignment
            for assignment in self.assignments
            if assignment.reason
            and assignment.engine in registry.public_names()
            and self._engine_asked_for(assignment) not in ("auto", assignment.engine)
        ]

    def _engine_asked_for(self, assignment: Assignment) -> str:
        wanted = self.settings[assignment.group].engine
        return registry.asked_for(wanted, assignment.param.device.type)

    def run(self) -> bool:
        """Carry out one step, gradients having been collected.

        Returns:
            False if the guards do not admit it: nothing is done then.

        Raises:
            RuntimeError: a gradient is not finite where that is an error; nothing is done then.
        """
        if not self._are_admitted():
            self.let_go()
            self._spread.end_step()
            return False
        self.run_admitted()
        return True

    def _are_admitted(self) -> bool:
        """Tell whether the guards admit a step with the gradients that were collected."""
        scaling, owners = self.context.scaling, self._spread.owners
        is_kept_on = scaling is None or self._is_kept_on(scaling)
        if owners is not None and (scaling is not None or not self._guards.is_on):
            is_kept_on = owners.agree(self._numbers(), objects=not is_kept_on)
        if is_kept_on and self._guards.is_on:
            self._guards.sum_squares()
            is_kept_on = self._guards.admits()
        if is_kept_on and owners is not None:
            owners.admit()
        return is_kept_on

    def _numbers(self) -> list[int]:
        """Return which parameters are updated here, where others are elsewhere."""
        return [one.number for part in self._parts for one in part.shards if one is not None]

    def _is_kept_on(self, scaling: Scaling) -> bool:
        """Tell the runners of a step's scaling; False if it is known to be called off."""
        runners = self._runners
        if all(isinstance(runner, CalledOffOnDevice) for runner in runners):
            for runner in runners:
                cast("CalledOffOnDevice", runner).call_off_by(scaling.found_inf)
            self._guards.found_inf = scaling.found_inf
            if scaling.grad_scale is not None:
                self._guards.grad_scale = scaling.grad_scale
        elif scaling.found_inf.item():
            return False
        elif scaling.grad_scale is not None:
            self._guards.grad_scale = scaling.grad_scale.item()
        if scaling.grad_scale is not None:
            for i in range(len(self.settings)):
                self._tell_numbers(i)
        return True

    def run_admitted(self) -> None:
        """Carry out a step that the guards have seen; a signal's handler runs before or after."""
        with uninterrupted:
            self._run(self._alone)
            if self._spread.owners is not None:
                self._spread.owners.send_updated()
            self._spread.end_step()
            if self._whole is not None:
                self._whole.learn()

    def refuse(self) -> None:
        """Let other ranks know that this one can't take the step, if they wait for it."""
        self._spread.refuse()

    def unmake_state(self) -> None:
        """Drop the state that was made for a first step which another rank has refused."""
        for param in self._made:
            self.context.state.pop(param, None)
            self.context.fresh.discard(param)

    def _run(self, alone: Sequence[PlannedRunner]) -> None:
        """Have all runners update that wait for others' sums, and some that don't.

        The former are never among what a whole step has taken, and come first: until ranks have met
        nothing may be updated.
        """
        ranks = self._spread.rule_ranks
        before = 0 if ranks is None else ranks.meetings
        try:
            self._run_each(alone)
        except RefusedElsewhereError:  # nobody waits any more
            raise
        except BaseException:
            levels = sum(together.levels for together in self._in_stages)
            if ranks is not None and ranks.has_met and ranks.meetings - before < levels:
                ranks.refuse()
            raise

    def _run_each(self, alone: Sequence[PlannedRunner]) -> None:
        for together in self._in_stages:
            together.run()
            for part in together.parts:
                self._count_first_updates(part.params)
        for part in alone:
            part.runner.run()
            self._count_first_updates(part.params)

    def _count_first_updates(self, params: Sequence[Tensor]) -> None:
        """Take what was updated out of those that were never updated."""
        if self.context.fresh:
            self.context.fresh.difference_update(p for p in params if p.grad is not None)
