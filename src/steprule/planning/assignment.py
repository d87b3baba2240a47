"""Who updates what: each parameter is offered to engines in order, and leaves become runners."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from steprule.distributed.shards import Shard
from steprule.engines import registry
from steprule.engines.engine import Engine, Leaf, Runner, UnavailableError
from steprule.engines.overlap import overlapping
from steprule.language.form import Form
from steprule.language.recording import Operation
from steprule.language.rule import SUPPLIED, Rule
from steprule.planning.settings import Settings

# Where a parameter is that has no gradient yet.
NO_ENGINE = "none"
NO_GRADIENT = "no gradient yet: the engine is chosen at its first step"


@dataclass
class Assignment:
    """A parameter and the engine that has it; ``reason`` if an earlier one does not take it."""

    param: Tensor
    group: int
    position: int
    engine: str
    reason: str = ""


@dataclass
class PlannedRunner:
    """A runner, whose it is, the groups whose numbers it must be told, and its leaves in order."""

    engine: Engine
    runner: Runner
    form: Form
    groups: frozenset[int]
    params: list[Tensor]
    leaf_groups: list[int]
    leaf_positions: list[int]
    shards: list[Shard | None]  # of those parameters that are sharded

    @property
    def rule(self) -> Rule:
        """The rule that it runs."""
        return self.form.rule

    @property
    def shared(self) -> tuple[Operation, ...]:
        """The reductions over several parameters, or ranks: only rules on elements have any."""
        return self.form.recording().shared_reductions if self.rule.is_recorded else ()

    def grads(self) -> list[Tensor | None]:
        """Return what is here of its parameters' gradients."""
        return [
            param.grad if shard is None else shard.grad
            for param, shard in zip(self.params, self.shards, strict=True)
        ]


def tell_numbers(
    parts: Sequence[PlannedRunner],
    settings: Sequence[Settings],
    group: int,
    clip_factor: Any,
    grad_scale: Any = 1.0,
) -> None:
    """Put a group's numbers in force at its runners.

    Among them are what its gradients are multiplied and divided by.
    """
    of_group = settings[group]
    known = {**of_group.numbers, "clip_factor": clip_factor, "grad_scale": grad_scale}
    numbers = {n: known[n] for n in of_group.form.scalars if n not in SUPPLIED}
    for part in parts:
        if group in part.groups:
            part.runner.set_numbers(group, numbers)


@dataclass
class _Offer:
    """A leaf that no engine has taken so far, and those it may still be offered to."""

    leaf: Leaf
    form: Form
    candidates: tuple[str, ...]
    reason: str = field(default="")

    def refuse(self, reason: str, *, only: str | None = None) -> None:
        self.reason = self.reason or reason
        if only is not None:
            self.candidates = (only,)


def assign(
    leaves: Sequence[Leaf],
    settings: Sequence[Settings],
    shards: Mapping[Tensor, Shard],
    *,
    by_address: bool,
) -> tuple[list[Assignment], list[PlannedRunner]]:
    """Give every leaf to the first engine that takes it, and make the runners.

    Args:
        leaves: parameters with a gradient and all their state.
        settings: of each group.
        shards: what is here of sharded parameters.
        by_address: whether engines that reach memory by address may be used now.
    """
    waiting = [
        _Offer(
            leaf,
            form_of_leaf(leaf.owner, settings[leaf.group].form, is_spread=leaf.is_spread),
            registry.candidates(settings[leaf.group].engine, leaf.param.device.type),
        )
        for leaf in leaves
    ]
    assignments: list[Assignment] = []
    parts: list[PlannedRunner] = []
    for entry in registry.entries():
        offered = [offer for offer in waiting if entry.name in offer.candidates]
        if not offered:
            continue
        try:
            engine = registry.load(entry)
            if engine.by_address and not by_address:
                raise UnavailableError(
                    "a dispatch or function mode is active, or a transform of torch.func, which "
                    "must see the update"
                )
        except UnavailableError as error:
            for offer in offered:
                offer.refuse(str(error))
            continue
        taken = _taken(engine, offered, shards, parts)
        assignments += [_assignment(offer, engine.name) for offer in taken]
        is_taken = set(map(id, taken))
        waiting = [offer for offer in waiting if id(offer) not in is_taken]
    if waiting:
        raise AssertionError(f"no engine takes {waiting[0].leaf.label}: {waiting[0].reason}")
    return assignments, parts


def _taken(
    engine: Engine,
    offered: Sequence[_Offer],
    shards: Mapping[Tensor, Shard],
    parts: list[PlannedRunner],
) -> list[_Offer]:
    """Return those that the engine has runners for, which are added to ``parts``."""
    buckets: dict[Hashable, list[_Offer]] = {}
    for offer in offered:
        refusal = engine.refusal(offer.leaf, offer.form)
        if refusal is None:
            key = (
                offer.form,
                offer.leaf.shard is None,
                offer.leaf.region is None,
                engine.bucket_key(offer.leaf, offer.form),
            )
            buckets.setdefault(key, []).append(offer)
        else:
            offer.refuse(refusal)
    taken = []
    for bucket in buckets.values():
        form = bucket[0].form
        kept = _without_shared_memory(bucket) if engine.by_address else bucket
        if not kept:
            continue
        leaves = [offer.leaf for offer in kept]
        try:
            runner = engine.runner(form, leaves)
        except UnavailableError as error:
            for offer in kept:
                offer.refuse(str(error))
            continue
        of_leaves = [leaf.group for leaf in leaves]
        parts.append(
            PlannedRunner(
                engine=engine,
                runner=runner,
                form=form,
                groups=frozenset(of_leaves),
                params=[leaf.owner for leaf in leaves],
                leaf_groups=of_leaves,
                leaf_positions=[leaf.position for leaf in leaves],
                shards=[shards.get(leaf.owner) for leaf in leaves],
            )
        )
        taken += kept
    return taken


def form_of_leaf(param: Tensor, form: Form, *, is_spread: bool) -> Form:
    """Return the form that a parameter takes of a group's, whether or not it is spread over ranks.

    Slots may depend on its shape, and sums over its elements on the ranks that have some.
    """
    of_shape = form.of_shape(param.shape)
    return of_shape.over_shards() if is_spread else of_shape


def _without_shared_memory(bucket: Sequence[_Offer]) -> list[_Offer]:
    """Return the others; leaves that share memory are updated one after the other."""
    shared = overlapping([offer.leaf for offer in bucket])
    for i in shared:
        only = registry.reference_name()
        bucket[i].refuse("it shares memory with another parameter or state", only=only)
    return [offer for i, offer in enumerate(bucket) if i not in shared]


def _assignment(offer: _Offer, engine: str) -> Assignment:
    leaf = offer.leaf
    return Assignment(leaf.owner, leaf.group, leaf.position, engine, offer.reason)
