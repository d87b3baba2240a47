"""From parameters to runners, kept from step to step.

A plan is made when the optimizer first steps and again when anything it rests on has changed:
a group's parameters or flags, a state dict that was replaced, a tensor that moved. A change of
numbers alone (a schedule's new lr) only refreshes the runners' numbers. It knows no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steprule.engines import registry
from steprule.engines.dispatch_modes import is_watched
from steprule.engines.engine import Leaf
from steprule.engines.guards.identity import IdentityGuard
from steprule.language.rule import SUPPLIED
from steprule.planning.assignment import NO_ENGINE, Assignment, assign
from steprule.planning.leaf_checks import checked_leaves, make_state
from steprule.planning.settings import Context, differ, settings_of
from steprule.planning.whole_steps import WholeSteps
from steprule.state.making import unchanged_state


class Plan:
    """Who updates what at the next steps, as long as all is as it was.

    Args:
        context: the optimizer's parts.

    Raises:
        RuntimeError: a gradient or state that cannot be taken, named; nothing is changed.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = [settings_of(context, i) for i in range(len(context.groups))]
        leaves = checked_leaves(context, self.settings)
        with unchanged_state(context.state, context.fresh):
            for leaf in leaves:
                make_state(context, leaf)
            self._plan(leaves)

    def _plan(self, leaves: Sequence[Leaf]) -> None:
        """Assign checked leaves with all their state to runners, and take their gradients."""
        context = self.context
        self._is_watched = is_watched()
        assigned, self._parts = assign(leaves, self.settings, by_address=not self._is_watched)
        self._params = [leaf.param for leaf in leaves]
        has_grad = {(leaf.group, leaf.position) for leaf in leaves}
        without = [
            Assignment(param, i, position, NO_ENGINE, "no gradient yet")
            for i, settings in enumerate(self.settings)
            for position, param in enumerate(settings.params)
            if (i, position) not in has_grad
        ]
        self.assignments = [*assigned, *without]
        self._without_grad = [assignment.param for assignment in without]
        self._same_states = IdentityGuard(context.state.values())
        for i in range(len(self.settings)):
            self._tell_numbers(i)
        self._whole = WholeSteps.of(context, self.settings, self.assignments, self._parts)
        # Whether nothing but whole steps is taken, to which autograd is nothing.
        self.ignores_autograd = self._whole is not None and not self._whole.others
        self._runners = [part.runner for part in self._parts]
        if not all(runner.collect() for runner in self._runners):
            raise RuntimeError(
                "a gradient or parameter has no memory (its storage was freed): "
                "compute the gradients again before step()"
            )

    def _tell_numbers(self, group: int) -> None:
        settings = self.settings[group]
        numbers = {n: settings.numbers[n] for n in settings.form.scalars if n not in SUPPLIED}
        for part in self._parts:
            if group in part.groups:
                part.runner.set_numbers(group, numbers)

    def step_whole(self) -> bool:
        """Carry out one step by what an engine offers for that, if all is as planned.

        Returns:
            False if it is not; nothing is done then.
        """
        whole = self._whole
        if whole is None or not whole.is_ready() or is_watched():
            return False
        if not all(runner.collect() for runner in whole.others):
            return False
        if not whole.step(self._groups_hold):
            return False
        for runner in whole.others:
            runner.run()
        self._count_first_updates(self._params)
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
            if not settings.take_numbers(now):
                renewed = settings_of(self.context, i)
                if renewed.form != settings.form or renewed.engine != settings.engine:
                    return False
                self.settings[i] = renewed
            if self._whole is not None:
                self._whole.numbers_were_taken()
            self._tell_numbers(i)
        else:
            settings.signature = now  # equal, perhaps other objects
        return True

    def _states_hold(self) -> bool:
        return self._same_states.holds(tuple(self.context.state.values()))

    def fallen_back(self) -> list[Assignment]:
        """Return the parameters whose engine is not the one that their group asked for by name."""
        return [
            assignment
            for assignment in self.assignments
            if assignment.reason
            and assignment.engine in registry.public_names()
            and self.settings[assignment.group].engine not in ("auto", assignment.engine)
        ]

    def run(self) -> None:
        """Carry out one step, gradients having been collected."""
        for part in self._parts:
            part.runner.run()
            self._count_first_updates(part.params)
        if self._whole is not None:
            self._whole.learn()

    def _count_first_updates(self, params: Sequence[Tensor]) -> None:
        """Take what was updated out of those that were never updated."""
        if self.context.fresh:
            self.context.fresh.difference_update(p for p in params if p.grad is not None)
