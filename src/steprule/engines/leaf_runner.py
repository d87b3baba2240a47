"""The runner of engines that work on tensors: gathers leaves, and watches that they are as planned.

In a step like the last one only the gradients are new, which one guard tells; otherwise each
gradient is looked at, and those that are missing are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.engines.engine import Leaf, Numbers
from steprule.engines.guards.shards import shard_guard_of
from steprule.engines.guards.tensors import TensorGuard
from steprule.engines.stages import Stages
from steprule.formats.floating import tells_address
from steprule.language.form import Form

# How often in a row gradients of another kind than before are learned anew.
TRIES = 4

# Updates some leaves, given the numbers of each group.
Update = Callable[[Form, Sequence[Leaf], Mapping[int, Numbers]], None]
# The same, of a rule with sums over several parameters.
UpdateInStages = Callable[[Form, Sequence[Leaf], Mapping[int, Numbers]], Stages]


class LeafRunner:
    """Updates leaves by a function that is given them with this step's gradients.

    Args:
        form: the form of all.
        leaves: the leaves, with the gradients that they were planned for.
        update: updates them.
        in_stages: updates them by a rule with sums over several parameters.
    """

    def __init__(
        self,
        form: Form,
        leaves: Sequence[Leaf],
        update: Update,
        in_stages: UpdateInStages | None = None,
    ) -> None:
        self.form = form
        self._update, self._in_stages = update, in_stages
        self._params = tuple(leaf.param for leaf in leaves)
        self._places = [(leaf.state, leaf.group, leaf.position, leaf.label) for leaf in leaves]
        self._stored = [
            (
                leaf.storage,
                leaf.random_key,
                leaf.shard,
                leaf.entry,
                leaf.region,
                leaf.own_number,
            )
            for leaf in leaves
        ]
        # What has the gradient: the parameter, or what knows of its part here.
        self._owners = tuple(leaf.shard or leaf.param for leaf in leaves)
        self._shard_guard = shard_guard_of(leaves)
        self._is_first = [leaf.is_first for leaf in leaves]
        self._slots = [frozenset(leaf.state) for leaf in leaves]
        self._kinds = [(_kind_of(leaf.param), _kind_of(leaf.grad)) for leaf in leaves]
        # Those that have memory, and their entries of the state that do.
        self._in_memory = [
            (
                i,
                _is_in_memory(leaf.grad),
                [name for name, value in leaf.state.items() if _is_in_memory(value)],
            )
            for i, leaf in enumerate(leaves)
            if _is_in_memory(leaf.param)
        ]
        self._numbers: dict[int, Numbers] = {}
        self._may_be_guarded = len(set(self._params)) == len(leaves) and all(
            type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
            for leaf in leaves
            for tensor in (leaf.param, leaf.grad)
        )
        self._guard: TensorGuard | None = None
        self._tries = TRIES
        # This step's gradients, in the order of the leaves, None for those without; or None.
        self._grads: list[Any] | None = None

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        self._numbers[group] = dict(numbers)

    def collect(self) -> bool:
        self.let_go()
        if not all(map(_holds, self._slots, self._places)):
            return False
        if self._shard_guard is not None and not self._shard_guard.holds():
            return False
        grads: list[Any] = [owner.grad for owner in self._owners]
        if self._guard is not None and self._guard.holds((*self._params, *grads)):
            self._tries = TRIES
        elif not self._look_at_each(grads):
            return False
        try:
            if self._has_lost_memory(grads):
                return False
        except RuntimeError:  # a gradient that a transform of torch.func has left has no address
            return False
        self._grads = grads
        return True

    def _has_lost_memory(self, grads: Sequence[Any]) -> bool:
        """Tell whether the memory of anything may have been freed: planning anew says of what."""
        for i, has_grad, names in self._in_memory:
            grad, state = grads[i], self._places[i][0]
            if not self._params[i].data_ptr():
                return True
            if has_grad and grad is not None and not grad.data_ptr():
                return True
            for name in names:
                value = state[name]
                if type(value) is Tensor and not value.data_ptr():
                    return True
        return False

    def _look_at_each(self, grads: Sequence[Any]) -> bool:
        """Tell whether each gradient that is there is of the kind that was planned for."""
        self._guard = None
        for param, grad, kinds in zip(self._params, grads, self._kinds, strict=True):
            if grad is not None and (_kind_of(param), _kind_of(grad)) != kinds:
                return False
        if self._may_be_guarded and self._tries and all(grad is not None for grad in grads):
            self._tries -= 1
            self._guard = TensorGuard((*self._params, *grads))
        return True

    def run(self) -> None:
        self.update_leaves(self._taken_grads())
        self.let_go()

    def _taken_grads(self) -> list[Any]:
        """Return what was collected; what is there now if another thread's step let go of it."""
        grads = self._grads
        return [owner.grad for owner in self._owners] if grads is None else grads

    def update_leaves(self, grads: Sequence[Any]) -> None:
        """Update the leaves that have a gradient, by the function."""
        found, leaves = self._leaves_with(grads)
        self._update(self.form, leaves, self._numbers)
        for i in found:
            self._is_first[i] = False

    def _leaves_with(self, grads: Sequence[Any]) -> tuple[list[int], list[Leaf]]:
        """Return where there is a gradient, and the leaves with it."""
        found = [i for i, grad in enumerate(grads) if grad is not None]
        leaves = [
            Leaf(
                *(self._params[i], grads[i], state, group, position, self._is_first[i], label),
                *self._stored[i],
            )
            for i in found
            for state, group, position, label in (self._places[i],)
        ]
        return found, leaves

    def stages(self) -> Stages:
        """Update the leaves that have a gradient, by a rule with sums over several parameters."""
        assert self._in_stages is not None
        found, leaves = self._leaves_with(self._taken_grads())
        yield from self._in_stages(self.form, leaves, self._numbers)
        for i in found:
            self._is_first[i] = False
        self.let_go()

    def let_go(self) -> None:
        self._grads = None


def _holds(names: frozenset[str], place: tuple[dict[str, Any], int, int, str]) -> bool:
    """Tell whether a leaf's state still has its slots."""
    return names <= place[0].keys()


def _is_in_memory(value: Any) -> bool:
    """Tell whether something is a plain tensor with elements: their address is not 0."""
    return tells_address(value) and value.data_ptr() != 0


def _kind_of(tensor: Tensor) -> tuple[Any, ...]:
    return type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.shape
