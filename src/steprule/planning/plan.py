"""From parameters to engines: which parameter is updated by what, kept from step to step.

A plan is made when the optimizer first steps and again when anything it rests on has changed:
a group's parameters or flags, a state dict that was replaced, a tensor that moved. A change of
numbers alone (a schedule's new lr) only refreshes the tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.engines import Engine, Leaf
from steprule.engines.eager.engine import EagerEngine
from steprule.engines.foreach.bucket import ForeachEngine
from steprule.engines.guards.identity import SameObjects
from steprule.engines.rows.engine import RowsEngine
from steprule.language.form import Form
from steprule.language.rule import SUPPLIED
from steprule.optimizer.param_groups import label_of
from steprule.optimizer.scheduled import SCHEDULES
from steprule.planning.loose import Loose, Update
from steprule.planning.settings import Context, Settings, differ, settings_of
from steprule.planning.whole_steps import WholeSteps
from steprule.state.state_dict import check_state, ensure_state


@dataclass
class Seat:
    """Where a parameter stands and which engine has it; ``reason`` if not the one asked for."""

    param: Tensor
    group: int
    position: int
    engine: str
    reason: str = ""
    is_sparse: bool = False

    def fits(self) -> bool:
        """Whether the gradient is still of the kind that the engine was chosen for."""
        grad = self.param.grad
        return grad is None or grad.is_sparse == self.is_sparse


class Plan:
    """Runners for the fused engine, and seats for the parameters that are gathered each step."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings = [settings_of(context, i) for i in range(len(context.groups))]
        leaves = self._all_leaves()
        for leaf, _ in leaves:
            self._make_state(leaf)
        self.seats: list[Seat] = []
        self._runners = self._seat(leaves)
        self.has_schedules = any(SCHEDULES in group for group in context.groups)
        self._same_states = SameObjects(context.state.values())
        self._loose = Loose(
            [seat for seat in self.seats if seat.engine not in ("fused", "none")],
            self.settings,
            context.fresh,
            _engine,
            self._checked_leaf,
            self._make_state,
        )
        self._dormant = [seat.param for seat in self.seats if seat.engine == "none"]
        self._whole = WholeSteps(
            context, self.settings, self._runners, self._dormant, self._groups_hold
        )
        if not all(runner.collect() for runner in self._runners):
            raise RuntimeError(
                "a gradient or parameter has no memory (its storage was freed): "
                "compute the gradients again before step()"
            )

    def _make_state(self, leaf: Leaf) -> None:
        """Give a leaf what state it lacks (someone may have cleared it since the last step)."""
        context = self.context
        options = context.options_of(context.groups[leaf.group])
        ensure_state(context.rule, options, leaf.param, context.state, context.fresh)
        leaf.state = context.state.get(leaf.param, {})
        leaf.is_first = leaf.param in context.fresh

    def _all_leaves(self) -> list[tuple[Leaf, int]]:
        """Every parameter that has a gradient, with its position in its group; all checked."""
        found = []
        for i, settings in enumerate(self.settings):
            for position, param in enumerate(settings.params):
                if param.grad is not None:
                    leaf = self._checked_leaf(i, position)
                    check_state(self.context.rule, leaf.param, leaf.state, leaf.label)
                    found.append((leaf, position))
        return found

    def _checked_leaf(self, group_index: int, position: int) -> Leaf:
        group = self.context.groups[group_index]
        param = group["params"][position]
        grad = param.grad
        label = label_of(group, group_index, position)
        self._check_kind(param, grad, label)
        if grad.shape != param.shape:
            raise RuntimeError(
                f"the gradient of {label} has shape {tuple(grad.shape)}, the parameter has "
                f"{tuple(param.shape)}: call zero_grad() after changing a parameter's data"
            )
        if grad.device != param.device or grad.is_complex() != param.is_complex():
            raise RuntimeError(
                f"the gradient of {label} is {grad.dtype} on {grad.device}, the parameter is "
                f"{param.dtype} on {param.device}: call zero_grad() after moving a parameter"
            )
        form = self.settings[group_index].form
        if grad.is_sparse:
            if form.decay != "none":
                raise RuntimeError(
                    f"weight_decay option is not compatible with sparse gradients: {label} has "
                    "one, and decay would touch every row of it. Put it in a group with "
                    "weight_decay=0"
                )
            if _touches_every_row(form):
                grad = grad.to_dense()
        state = self.context.state.get(param, {})
        return Leaf(param, grad, state, group_index, param in self.context.fresh, label)

    def _check_kind(self, param: Tensor, grad: Tensor, label: str) -> None:
        """Refuse a gradient or parameter of a kind that the rule does not take."""
        name, rule = self.context.name, self.context.rule
        if param.is_complex() and not rule.takes_complex:
            raise RuntimeError(f"{name} does not support complex parameters: {label} is one")
        if grad.layout is torch.strided:
            if rule.sparse == "only":
                raise RuntimeError(
                    f"{name} does not support dense gradients, please consider Adam instead: "
                    f"{label} has one"
                )
        elif rule.sparse == "refused" or not grad.is_sparse:
            raise RuntimeError(
                f"{name} does not support sparse gradients: {label}, of shape "
                f"{tuple(param.shape)}, has one (layout {grad.layout}). Make it dense "
                "(sparse=False in the embedding, or param.grad = param.grad.to_dense()), or "
                f"give it to one of {', '.join(self.context.takers_of_sparse)}"
            )

    def _seat(self, leaves: Sequence[tuple[Leaf, int]]) -> list[Any]:
        """Give every parameter its engine; return the fused engine's runners."""
        buckets: dict[Any, list[tuple[Leaf, Seat]]] = {}
        seated = set()
        for leaf, position in leaves:
            settings = self.settings[leaf.group]
            name, reason = self._engine_for(leaf, settings)
            is_sparse = leaf.param.grad is not None and leaf.param.grad.is_sparse
            seat = Seat(leaf.param, leaf.group, position, name, reason, is_sparse)
            self.seats.append(seat)
            seated.add((leaf.group, position))
            if name == "fused":
                from steprule.engines.cpu.engine import layout_key

                buckets.setdefault(layout_key(settings.form, leaf), []).append((leaf, seat))
        for i, settings in enumerate(self.settings):
            for position, param in enumerate(settings.params):
                if (i, position) not in seated:
                    self.seats.append(Seat(param, i, position, "none", "no gradient yet"))
        return [r for bucket in buckets.values() if (r := self._runner(bucket)) is not None]

    def _runner(self, bucket: list[tuple[Leaf, Seat]]) -> Any:
        from steprule.engines.compiler.cache import CompilationError
        from steprule.engines.cpu.engine import overlapping
        from steprule.engines.cpu.runner import FusedRunner

        form = self.settings[bucket[0][0].group].form
        shared = overlapping([leaf for leaf, _ in bucket], form)
        for i in shared:
            seat = bucket[i][1]
            seat.engine = "eager"
            seat.reason = "it shares memory with another parameter or state"
        kept = [leaf for i, (leaf, _) in enumerate(bucket) if i not in shared]
        if not kept:
            return None
        try:
            runner = FusedRunner(form, kept)
        except CompilationError as error:
            for i, (_, seat) in enumerate(bucket):
                if i not in shared:
                    seat.engine, seat.reason = "foreach", str(error)
            return None
        for group in runner.groups:
            runner.set_numbers(group, self._plain_numbers(group))
        return runner

    def _engine_for(self, leaf: Leaf, settings: Settings) -> tuple[str, str]:
        """The first engine that takes the leaf, and why an earlier one did not."""
        if leaf.grad.is_sparse:
            return "rows", "the gradient is sparse"
        on_cpu = leaf.param.device.type == "cpu"
        wanted = settings.engine
        if leaf.param.grad is not None and leaf.param.grad.is_sparse:
            return "eager", "its state changes in every row: the sparse gradient is made dense"
        if wanted == "auto":
            wanted = "fused" if on_cpu else "foreach"
        order = {"fused": ("fused", "foreach", "eager"), "foreach": ("foreach", "eager")}
        reason = ""
        for name in order.get(wanted, ("eager",)):
            refusal = _engine(name).refusal(leaf, settings.form)
            if refusal is None:
                return name, reason
            reason = reason or refusal
        raise AssertionError("the eager engine refuses nothing")

    def _plain_numbers(self, group: int) -> list[float]:
        settings = self.settings[group]
        names = [name for name in settings.form.scalars if name not in SUPPLIED]
        return [settings.numbers[name] for name in names]

    @property
    def is_all_kernels(self) -> bool:
        """Whether nothing but kernels runs, to which autograd is nothing."""
        return not self._loose.seats

    def step_whole(self) -> bool:
        """Carry out one step, the kernels' part by one native call, if all is as planned.

        Returns:
            False if it is not; nothing is done then.
        """
        if not self._whole.is_ready():
            return False
        if self.is_all_kernels:
            return self._whole.step()
        updates = self._loose.same_updates()
        if updates is None or not self._whole.step():
            return False
        self._carry_out(updates)
        return True

    def collect(self) -> bool:
        """Take this step's numbers and gradients; False if the plan no longer fits."""
        return (
            self._groups_hold()
            and self._states_hold()
            and not any(param.grad is not None for param in self._dormant)
            and self._loose.collect()
            and all(runner.collect() for runner in self._runners)
        )

    def still_fits(self) -> bool:
        """Whether the plan still fits, for who does not mean to run it."""
        try:
            return self.collect()
        finally:
            for part in (self._loose, *self._runners):
                part.let_go()

    def _groups_hold(self) -> bool:
        groups = self.context.groups
        return len(groups) == len(self.settings) and all(
            self._group_holds(i, group) for i, group in enumerate(groups)
        )

    def _group_holds(self, i: int, group: dict[str, Any]) -> bool:
        """Whether a group's parameters and flags are as planned; new numbers are passed on."""
        settings = self.settings[i]
        params = group["params"]
        if group is not settings.group:
            return False
        if not settings.same_params.are(params):
            return False
        now = tuple(map(group.get, settings.keys))
        if settings.is_mutable or differ(now, settings.signature):
            if not settings.take_numbers(now):
                renewed = settings_of(self.context, i)
                if renewed.form != settings.form or renewed.engine != settings.engine:
                    return False
                self.settings[i] = renewed
            self._whole.numbers_were_taken()
            for runner in self._runners:
                if i in runner.row_of:
                    runner.set_numbers(i, self._plain_numbers(i))
        else:
            settings.signature = now  # equal, perhaps other objects
        return True

    def _states_hold(self) -> bool:
        return self._same_states.are(tuple(self.context.state.values()))

    def fallen_back(self) -> list[Seat]:
        """The seats whose engine is not the one that their group asked for by name."""
        return [
            seat
            for seat in self.seats
            if seat.reason
            and seat.engine not in ("none", "rows")
            and self.settings[seat.group].engine not in ("auto", seat.engine)
        ]

    def run(self) -> None:
        """Carry out one step, gradients having been collected."""
        updates = self._loose.updates()
        for runner in self._runners:
            runner.run()
        self._carry_out(updates)
        if self.context.fresh:
            self.context.fresh.difference_update(
                seat.param for seat in self.seats if seat.param.grad is not None
            )
        self._whole.learn()

    def _carry_out(self, updates: Sequence[Update]) -> None:
        numbers = {i: settings.numbers for i, settings in enumerate(self.settings)}
        for update in updates:
            update(numbers)


def _touches_every_row(form: Form) -> bool:
    return any(form.rule.slots[name].needs_every_step for name in form.present_slots)


_engines: dict[str, Engine] = {
    engine.name: engine for engine in (EagerEngine(), ForeachEngine(), RowsEngine())
}


def _engine(name: str) -> Engine:
    if name not in _engines:
        from steprule.engines.cpu.engine import FusedEngine

        _engines[name] = FusedEngine()  # type: ignore[assignment]
    return _engines[name]
