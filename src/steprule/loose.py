"""Parameters that no kernel has: gathered for their engines at every step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


class Loose:
    """Gathers leaves; after a step like the last one only the gradients are new.

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
        self._likeness: Likeness | None = None
        self._leaves: list[Leaf] = []
        self._gathered: Gathered = {}
        self._holds = False
        self._tries = TRIES

    def fit(self) -> bool:
        """Whether the gradients are still of the kinds that the engines were chosen for."""
        return self._like_the_last() is not None or all(seat.fits() for seat in self.seats)

    @contextlib.contextmanager
    def leaves(self) -> Iterator[Gathered]:
        """The leaves that have a gradient, all checked; their gradients are held only inside."""
        try:
            yield self._same() or self._anew()
        finally:
            self._let_go()

    @contextlib.contextmanager
    def same_leaves(self) -> Iterator[Gathered | None]:
        """Those of the last step with new gradients; None if these are unlike the last ones."""
        try:
            yield self._same()
        finally:
            self._let_go()

    def _same(self) -> Gathered | None:
        grads = self._like_the_last()
        if grads is None:
            return None
        fresh = self._fresh
        for leaf, grad in zip(self._leaves, grads, strict=True):
            leaf.grad = grad
            leaf.is_first = bool(fresh) and leaf.param in fresh
        self._holds = True
        return self._gathered if self._have_state() else None

    def _like_the_last(self) -> list[Any] | None:
        """The gradients, if the last step's leaves will do for them."""
        if self._likeness is None:
            return None
        grads: list[Any] = [param.grad for param in self._params]
        if not self._likeness.holds((*self._params, *grads)):
            self._likeness = None
            return None
        return grads

    def _anew(self) -> Gathered:
        self._leaves, self._holds = [], True
        gathered: dict[tuple[str, Form], list[Leaf]] = {}
        for seat in self.seats:
            if seat.param.grad is None:
                continue
            settings = self._settings[seat.group]
            leaf = self._checked_leaf(seat.group, seat.position)
            if not _has_state(leaf, settings):
                self._make_state(leaf)
            gathered.setdefault((seat.engine, settings.form), []).append(leaf)
            self._leaves.append(leaf)
        self._gathered = gathered
        self._learn()
        return gathered

    def _let_go(self) -> None:
        if self._holds:
            self._holds = False
            for leaf in self._leaves:
                del leaf.grad

    def _have_state(self) -> bool:
        return all(_has_state(leaf, self._settings[leaf.group]) for leaf in self._leaves)

    def _learn(self) -> None:
        grads = [param.grad for param in self._params]
        is_plain = len(self._leaves) == len(grads) and all(
            type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
            for tensor in (*self._params, *grads)
            if tensor is not None
        )
        if self._tries and is_plain and all(x.grad is x.param.grad for x in self._leaves):
            self._tries -= 1
            self._likeness = Likeness([t for t in (*self._params, *grads) if t is not None])


def _has_state(leaf: Leaf, settings: Settings) -> bool:
    return settings.state_names <= leaf.state.keys()
