"""Parameters that no kernel has: gathered for their engines at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.engines import Engine, Leaf, Numbers
from steprule.engines.batch import Batch
from steprule.engines.guards.tensors import Likeness
from steprule.language.form import Form
from steprule.planning.settings import Settings

if TYPE_CHECKING:
    from steprule.planning.plan import Seat

# What is left to do for some leaves, once it is told the groups' numbers.
Update = Callable[[Numbers], None]
# How often in a row gradients of another kind than before are learned anew.
TRIES = 4


class _Known(NamedTuple):
    """What a step was like: its tensors, and its batches with the places of their leaves."""

    likeness: Likeness
    batches: list[tuple[Batch, list[int]]]


class Loose:
    """Gathers leaves; in a step like the last one only the gradients are new.

    Args:
        seats: the parameters.
        settings: of each group; the plan's own list.
        fresh: the parameters that were never updated.
        engine_of: an engine by its name.
        checked_leaf: a leaf by group and position, checked; raises what the step is to raise.
        make_state: gives a leaf what state it lacks.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        settings: Sequence[Settings],
        fresh: set[Tensor],
        engine_of: Callable[[str], Engine],
        checked_leaf: Callable[[int, int], Leaf],
        make_state: Callable[[Leaf], None],
    ) -> None:
        self.seats = seats
        self._settings, self._fresh, self._engine_of = settings, fresh, engine_of
        self._checked_leaf, self._make_state = checked_leaf, make_state
        self._params = tuple(seat.param for seat in seats)
        self._known: _Known | None = None
        self._tries = TRIES
        self._collected: list[Update] | None = None

    def collect(self) -> bool:
        """Look at this step's gradients; False if an engine was chosen for another kind of one."""
        self._collected = self.same_updates()
        return self._collected is not None or all(seat.fits() for seat in self.seats)

    def updates(self) -> list[Update]:
        """What to do for the leaves that have a gradient, all checked; after :meth:`collect`."""
        same = self._collected
        self.let_go()
        return self._updates_anew() if same is None else same

    def let_go(self) -> None:
        """Keep no gradient alive."""
        self._collected = None

    def same_updates(self) -> list[Update] | None:
        """The last step's updates with new gradients; None if these or the state are otherwise."""
        known = self._known
        if known is None or self._fresh:
            return None
        grads: list[Any] = [param.grad for param in self._params]
        is_same = known.likeness.holds((*self._params, *grads)) and all(
            batch.holds() for batch, _ in known.batches
        )
        if not is_same:
            self._known = None
            return None
        self._tries = TRIES
        return [partial(batch.run, [grads[i] for i in places]) for batch, places in known.batches]

    def _updates_anew(self) -> list[Update]:
        self._known = None
        found: dict[tuple[str, Form], list[Leaf]] = {}
        for seat in self.seats:
            if seat.param.grad is not None:
                leaf = self._checked_leaf(seat.group, seat.position)
                settings = self._settings[seat.group]
                if not settings.state_names <= leaf.state.keys():
                    self._make_state(leaf)
                found.setdefault((seat.engine, settings.form), []).append(leaf)
        if self._can_be_known([leaf for leaves in found.values() for leaf in leaves]):
            self._tries -= 1
            self._known = self._learned(found)
        return [
            partial(self._engine_of(name).apply, form, leaves)
            for (name, form), leaves in found.items()
        ]

    def _can_be_known(self, leaves: Sequence[Leaf]) -> bool:
        """Whether all parameters have a gradient of their own, and all are plain."""
        return (
            self._tries > 0
            and len(leaves) == len(self._params) == len(set(self._params))
            and all(leaf.grad is leaf.param.grad for leaf in leaves)
            and all(
                type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
                for leaf in leaves
                for tensor in (leaf.param, leaf.grad)
            )
        )

    def _learned(self, found: dict[tuple[str, Form], list[Leaf]]) -> _Known:
        place = {param: i for i, param in enumerate(self._params)}
        grads: list[Any] = [param.grad for param in self._params]
        return _Known(
            Likeness((*self._params, *grads)),
            [
                (self._engine_of(name).batch(form, leaves), [place[leaf.param] for leaf in leaves])
                for (name, form), leaves in found.items()
            ],
        )
