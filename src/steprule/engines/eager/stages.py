"""Eager updates of rules with sums over several parameters.

The rule's function can't be stopped in the midst of a call, but it is pure: it is called once for
each such sum, up to where it asks for it, and once more to update. What it asked for before is
answered from what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from steprule.engines.eager.update import new_values, supply_scalars
from steprule.engines.engine import Leaf, Numbers
from steprule.engines.stages import Share, Stages, Totals, as_tensor
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.language.form import Form

# Updates a leaf, given its group's numbers.
UpdateOne = Callable[[Form, Leaf, dict[str, Any]], None]


class _Reached(Exception):  # noqa: N818  # not an error
    """A rule came to a sum that is not known yet."""

    def __init__(self, own: Tensor, elements: int) -> None:
        self.own, self.elements = own, elements


def stages_of(
    form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers], update: UpdateOne
) -> Stages:
    """Update leaves one after the other, once what they have in common is known."""
    recording = form.recording()
    keys = recording.shared_keys
    calls = [keys.get(value) for value in recording.calls_of_shared]
    totals: Totals = {}
    for key in range(len(keys)):
        reached = [_run_to(form, leaf, dict(numbers[leaf.group]), calls, totals) for leaf in leaves]
        totals = yield [
            Share(
                key,
                values=[own for own, _ in reached],
                groups=[leaf.group for leaf in leaves],
                elements=[elements for _, elements in reached],
            )
        ]
    for leaf in leaves:
        with _answered(calls, totals, leaf.group):
            update(form, leaf, dict(numbers[leaf.group]))


def _run_to(
    form: Form, leaf: Leaf, numbers: dict[str, Any], calls: Sequence[int | None], totals: Totals
) -> tuple[Tensor, int]:
    """Run the rule up to the first sum that is not known.

    Returns:
        What the leaf adds to it, and of how many elements.
    """
    supply_scalars(form, leaf, numbers)
    try:
        with _answered(calls, totals, leaf.group):
            new_values(form, leaf, leaf.param, numbers)
    except _Reached as reached:
        return reached.own, reached.elements  # not the exception, which keeps frames alive
    raise AssertionError(
        f"the rule {form.rule.name!r} asks for other sums than it was recorded with"
    )


@contextmanager
def _answered(calls: Sequence[int | None], totals: Totals, group: int) -> Iterator[None]:
    """Answer what the rule asks for inside, in the order in which it asked when recorded."""
    order = iter(calls)

    def ask(own: Tensor, elements: int) -> Any:
        key = next(order)
        if key is None:  # nothing depends on it
            return own
        if key not in totals:
            raise _Reached(own, elements)
        return as_tensor(totals[key][group], own)

    VOCABULARY.ask = ask
    try:
        yield
    finally:
        VOCABULARY.ask = None
