"""A second rule of an optimizer: over the same state, by the same engines, between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.choices import STORING
from steprule.language.rule import Rule
from steprule.optimizer.base import SHARED
from steprule.planning.plan import Plan
from steprule.planning.settings import Context, Kind
from steprule.planning.step_record import StepRecord

# What a step does beside its rule; the side rule is to see gradients and parameters as they are.
_NEITHER: Mapping[str, Any] = {
    **{option: default for option, default in SHARED.items() if option not in STORING},
    "weight_decay": 0.0,
    "maximize": False,
}


class SideRule:
    """Carries out a rule that updates some slots of an optimizer's state, and no parameter.

    Args:
        name: the optimizer's, for messages.
        rule: whose slots are among those of the optimizer's.
        extras: the optimizer's options that torch has not.
    """

    def __init__(self, name: str, rule: Rule, extras: Mapping[str, Any]) -> None:
        self._kind = Kind(name, rule, extras)
        self._groups: list[dict[str, Any]] = []
        self._plan: Plan | None = None

    def run(self, context: Context) -> None:
        """Update the state of all parameters that have a gradient.

        Args:
            context: the optimizer's parts, as they are now.

        Raises:
            RuntimeError: a gradient that can't be taken, named; nothing is changed.
        """
        with torch.no_grad():
            if any(p.grad is not None and p not in context.state for p in _params_of(context)):
                Plan(context).let_go()  # which makes all state, as the first step would
            self._follow(context)
            plan = self._plan
            try:
                if plan is None or not plan.collect():
                    self._plan = None
                    plan = self._plan = Plan(self._context_of(context), for_step=True)
                with uninterrupted:
                    plan.run()
            finally:
                if plan is not None:
                    plan.let_go()

    def _follow(self, context: Context) -> None:
        """Let the groups be as the optimizer's are now, but for what only its steps do."""
        if self._plan is not None and not _is_of(self._plan, context):
            self._plan = None
        if len(self._groups) != len(context.groups):
            self._groups = [{} for _ in context.groups]
            self._plan = None
        for own, group in zip(self._groups, context.groups, strict=True):
            own.clear()
            own.update({**group, **_NEITHER})

    def _context_of(self, context: Context) -> Context:
        return replace(
            context,
            kind=self._kind,
            groups=self._groups,
            fresh=set(),
            record=StepRecord(),
            scaling=None,
            calls_off_on_device=False,
        )


def _params_of(context: Context) -> list[Any]:
    return [p for group in context.groups for p in group["params"] if context.has(p)]


def _is_of(plan: Plan, context: Context) -> bool:
    return plan.context.state is context.state and plan.context.engine == context.engine
