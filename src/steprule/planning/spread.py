"""An optimizer's sharded parameters: which are taken part by part, what ranks add up of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from steprule.distributed.shards import Shard, shards_of
from steprule.language.form import Form
from steprule.language.passes import shared_levels_of
from steprule.language.recording import (
    MATRIX_OPERATIONS,
    REDUCTIONS,
    SPREADABLE,
    Operation,
    Value,
)
from steprule.language.rule import Rule
from steprule.planning.assignment import form_of_leaf
from steprule.planning.owners import Owners
from steprule.planning.rank_sums import RankSums
from steprule.planning.settings import Outline, Settings
from steprule.planning.spread_param import SpreadParam
from steprule.state.labels import label_of


class Spread:
    """What a plan knows of sharded parameters, with or without a gradient: alike on every rank.

    Args:
        settings: of each group; their numbers don't matter.
        owners: of all parameters, where each rank has these whole and the state of some.
        meets: whether ranks meet for the guards.

    Attributes:
        owners: likewise.
        shards: what is here of each sharded parameter.
        taken_apart: of those that are updated part by part; others' rules need them whole.
        with_sums: of each rule whose sums ranks share, its parameters that are spread over them.
        ranks: adds up over ranks; None if nothing is spread over any.
        rule_ranks: does so for rules.
    """

    def __init__(
        self,
        settings: Sequence[Settings | Outline],
        owners: Owners | None = None,
        *,
        meets: bool = True,
    ) -> None:
        self.owners = owners
        params = [p for one in settings for p in one.params]
        self.shards: Mapping[Tensor, Shard] = shards_of(params) if owners is None else owners.parts
        self.taken_apart: dict[Tensor, Shard] = {}
        self.with_sums: dict[Rule, list[SpreadParam]] = {}
        self.ranks: RankSums | None = None
        self.rule_ranks: RankSums | None = None
        self._are_guarded = meets and any(map(is_guarded, settings))
        if self.shards:
            self._look_at(settings)

    def _look_at(self, settings: Sequence[Settings | Outline]) -> None:
        rows = 1
        known: dict[Form, tuple[tuple[Operation, ...], ...]] = {}
        for group, of_group in enumerate(settings):
            for position, param in enumerate(of_group.params):
                shard = self.shards.get(param)
                if shard is None or not (self.owners or takes_parts(of_group, param)):
                    continue
                if self.owners is None:
                    self.taken_apart[param] = shard
                if not shard.groups:
                    continue
                form = form_of_leaf(param, of_group.form, is_spread=self.owners is None)
                if not form.rule.is_recorded:
                    continue
                if form not in known:
                    known[form] = shared_levels_of(form.recording())
                levels = known[form]
                if levels:
                    rule = of_group.kind.rule
                    elements = param.numel() * (2 if param.is_complex() else 1)
                    label = label_of(of_group.group, group, position)
                    one = SpreadParam(shard, group, elements, form, label, levels)
                    self.with_sums.setdefault(rule.root, []).append(one)
                    rows = max(rows, *map(len, levels))
        spread = [shard for shard in self.shards.values() if shard.groups]
        if self.owners is not None:
            self.ranks = self.owners.meeting
            if self.with_sums:
                self.rule_ranks = RankSums(spread, rows)
                self.rule_ranks.has_met = True  # all have agreed on the step by then
        elif spread:
            self.ranks = self.rule_ranks = RankSums(spread, rows)

    def refuse(self) -> None:
        """Let other ranks know that this one can't take a step in which they wait for it."""
        if self.owners is not None:  # who do that themselves
            return
        ranks = self.ranks
        if ranks is not None and not ranks.has_met and (self._are_guarded or self.with_sums):
            ranks.refuse()
        self.end_step()

    def notes(self) -> list[str]:
        """Say what ranks add up in a step, if they do."""
        if self.ranks is None or not (self._are_guarded or self.with_sums):
            return []
        times = int(self._are_guarded) + sum(
            max(len(one.levels) for one in of_rule) for of_rule in self.with_sums.values()
        )
        return [f"ranks add up {self.ranks.bytes:,} bytes, {times} times a step"]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Have nothing sent to other ranks in a block that only looks."""
        for shard in self.shards.values():
            shard.is_quiet = True
        try:
            yield
        finally:
            for shard in self.shards.values():
                shard.is_quiet = False

    def end_step(self) -> None:
        """Note that the next step is another one."""
        if self.ranks is not None and self.owners is None:
            self.ranks.has_met = False


def is_guarded(settings: Settings | Outline) -> bool:
    """Tell whether all gradients of a group are looked at before it is updated."""
    return settings.clip_over is not None or settings.on_nonfinite != "propagate"


def takes_parts(settings: Settings | Outline, param: Tensor) -> bool:
    """Tell whether a group's rule can update a part of a parameter by itself, but for sums."""
    if settings.group.get("differentiable"):  # autograd goes through operations on the whole
        return False
    return _can_be_taken_apart(settings.form.of_shape(param.shape))


@functools.cache
def _can_be_taken_apart(form: Form) -> bool:
    if not form.rule.is_recorded:
        return False
    return not any(map(_needs_the_whole, form.recording().tensor_operations))


def _needs_the_whole(operation: Operation) -> bool:
    """Tell whether ranks don't add up an operation's parts: it is of whole parameters then.

    The largest along an axis; what is over all numbers of rows, or of columns, which every rank
    has that shares them; and what is done with the square matrices of a parameter's sides.
    """
    if operation.name in MATRIX_OPERATIONS:
        return operation.name not in SPREADABLE
    if operation.name not in REDUCTIONS:
        return False
    of_each = any(isinstance(x, Value) and x.each is not None for x in operation.operands)
    of_elements = any(isinstance(x, Value) and x.is_array for x in operation.operands)
    if operation.axis is not None:
        return operation.name == "max_of"
    return of_each and not of_elements
