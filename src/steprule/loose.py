"""Parameters that no kernel has: gathered for their engines at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.engines import Leaf
from steprule.engines.likeness import Likeness
from steprule.settings import Settings
from steprule.shared_terms import Form

if TYPE_CHECKING:
    from steprule.plan import Seat

# Leaves by the engine and the form that update them.
Gathered = Mapping[tuple[str, Form], list[Leaf]]
# How often gradients of another kind than before are learned anew.
TRIES = 4


class _Known(NamedTuple):
    """A step's leaves, without their gradients; and what tensors were like."""

    likeness: Likeness
    leaves: list[tuple[tuple[str, Form], list[tuple[int, dict[str, Any], int, str]]]]


class Loose:
    """Gathers leaves; in a step like the last one only the gradients are new.

    Args:
        seats: the parameters.
        settings: of each group; the plan's own list.
        fresh: the parameters that were never updated.
        checked_leaf: a leaf by group and position, checked; raises what the step is to raise.
        make_state: gives a leaf what state it lacks.
    """

    def __init__(
        self,
        seats: Sequence[Seat],
        settings: Sequence[Settings],
        fresh: set[Tensor],
        checked_leaf: Callable[[int, int], Leaf],
        make_state: Callable[[Leaf], None],
    ) -> None:
        self.seats = seats
        self._settings, self._fresh = settings, fresh
        self._checked_leaf, self._make_state = checked_leaf, make_state
        self._params = tuple(seat.param for seat in seats)
        self._known: _Known | None = None
        self._tries = TRIES

    def fit(self) -> bool:
        """Whether the gradients are still of the kinds that the engines were chosen for."""
        known = self._known
        is_same = known is not None and self._are_alike(known, self._grads())
        return is_same or all(seat.fits() for seat in self.seats)

    def gather(self) -> Gathered:
        """The leaves that have a gradient, all checked."""
        same = self.gather_same()
        return self._gather_anew() if same is None else same

    def gather_same(self) -> Gathered | None:
        """The last step's leaves with new gradients; None if these or the state are otherwise."""
        known, grads = self._known, self._grads()
        if known is None or not self._are_alike(known, grads):
            self._known = None
            return None
        fresh, found = self._fresh, {}
        for key, leaves in known.leaves:
            found[key] = [
                Leaf(self._params[i], grads[i], state, group, self._params[i] in fresh, label)
                for i, state, group, label in leaves
            ]
            if not all(map(self._has_state, found[key])):
                self._known = None
                return None
        return found

    def _gather_anew(self) -> Gathered:
        self._known = None
        found: dict[tuple[str, Form], list[Leaf]] = {}
        for seat in self.seats:
            if seat.param.grad is not None:
                leaf = self._checked_leaf(seat.group, seat.position)
                if not self._has_state(leaf):
                    self._make_state(leaf)
                key = seat.engine, self._settings[seat.group].form
                found.setdefault(key, []).append(leaf)
        self._learn(found)
        return found

    def _learn(self, found: Gathered) -> None:
        grads = self._grads()
        place = {param: i for i, param in enumerate(self._params)}
        leaves = [leaf for bucket in found.values() for leaf in bucket]
        if (
            self._tries
            and len(leaves) == len(grads) == len(place)
            and all(leaf.grad is grads[place[leaf.param]] for leaf in leaves)
            and all(
                type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
                for tensor in (*self._params, *grads)
            )
        ):
            self._tries -= 1
            self._known = _Known(
                Likeness((*self._params, *grads)),
                [
                    (key, [(place[x.param], x.state, x.group, x.label) for x in bucket])
                    for key, bucket in found.items()
                ],
            )

    def _grads(self) -> list[Any]:
        return [param.grad for param in self._params]

    def _are_alike(self, known: _Known, grads: list[Any]) -> bool:
        return known.likeness.holds((*self._params, *grads))

    def _has_state(self, leaf: Leaf) -> bool:
        return self._settings[leaf.group].state_names <= leaf.state.keys()
