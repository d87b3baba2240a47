"""Eager updates of rules with sums over several parameters.

The rule's function can't be stopped in the midst of a call, but it is pure: it is called once for
each level of such sums, up to the last of them, and once more to update. What it asked for before
is answered from what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from steprule.distributed.shards import whole_of
from steprule.engines.eager.update import new_values, supply_scalars
from steprule.engines.engine import Leaf, Numbers
from steprule.engines.stages import Share, Stages, Totals, as_tensor
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.language.form import Form
from steprule.language.passes import shared_levels_of
from steprule.language.recording import OVER_SHARDS
from steprule.matrix_ops import SPREAD

# Updates a leaf, given its group's numbers.
UpdateOne = Callable[[Form, Leaf, dict[str, Any]], None]


# What a leaf adds to each reduction, by its key; of a matrix operation what is here of its matrix,
# and what it is told.
Own = dict[int, tuple[Tensor, tuple[Any, ...]]]


class _Reached(Exception):  # noqa: N818  # not an error
    """A rule came to the last of the sums that are asked for."""


def stages_of(
    form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers], update: UpdateOne
) -> Stages:
    """Update leaves one after the other, once what they have in common is known."""
    recording = form.recording()
    keys = recording.shared_keys
    over_shards = {keys[x.result] for x in recording.shared_reductions if x.over == OVER_SHARDS}
    calls = [keys.get(value) for value in recording.calls_of_shared]
    totals: Totals = {}
    for level in shared_levels_of(recording):
        wanted = [keys[x.result] for x in level]
        reached = [
            _run_to(form, leaf, dict(numbers[leaf.group]), calls, totals, over_shards, wanted)
            for leaf in leaves
        ]
        totals = yield [
            Share(
                key,
                values=[own[key][0] for own in reached],
                groups=[leaf.group for leaf in leaves],
                elements=[leaf.elements for leaf in leaves],
                numbers=[leaf.number for leaf in leaves],
                told=[own[key][1] for own in reached],
            )
            for key in wanted
        ]
    for leaf in leaves:
        with _answered(form, leaf, calls, totals, over_shards, {}, ()):
            update(form, leaf, dict(numbers[leaf.group]))


def _run_to(
    form: Form,
    leaf: Leaf,
    numbers: dict[str, Any],
    calls: Sequence[int | None],
    totals: Totals,
    over_shards: Collection[int],
    wanted: Sequence[int],
) -> Own:
    """Run the rule up to the last of the sums that are wanted; return what the leaf adds to them.

    A sum that is not known is answered by what the leaf adds: nothing wanted depends on it.
    """
    supply_scalars(form, leaf, numbers)
    own: Own = {}
    try:
        with _answered(form, leaf, calls, totals, over_shards, own, wanted):
            new_values(form, leaf, leaf.param, numbers)
    except _Reached:
        return own
    raise AssertionError(
        f"the rule {form.rule.name!r} asks for other sums than it was recorded with"
    )


@contextmanager
def _answered(
    form: Form,
    leaf: Leaf,
    calls: Sequence[int | None],
    totals: Totals,
    over_shards: Collection[int],
    found: Own,
    wanted: Sequence[int],
) -> Iterator[None]:
    """Answer what the rule asks for inside, in the order in which it asked when recorded."""
    order = iter(calls)

    def ask(own: Tensor, told: tuple[Any, ...] = ()) -> Any:
        key = next(order)
        if key is None:  # nothing depends on it
            return own
        if key in totals:
            return as_tensor(totals[key][leaf.number if key in over_shards else leaf.group], own)
        if key in wanted:
            found[key] = whole_of(own), told
            if len(found) == len(wanted):
                raise _Reached
        return own

    VOCABULARY.ask, VOCABULARY.is_sharded = ask, form.is_sharded
    SPREAD.ask = ask if form.is_sharded else None
    try:
        yield
    finally:
        VOCABULARY.ask, VOCABULARY.is_sharded = None, False
        SPREAD.ask = None
