"""The foreach engine's runner: lists are made once, not at each step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines.eager.update import advance, supply_scalars
from steprule.engines.engine import Leaf, Numbers
from steprule.engines.foreach.bucket import Bucket
from steprule.engines.guards.identity import IdentityGuard
from steprule.engines.guards.tensors import TensorGuard
from steprule.engines.leaf_runner import LeafRunner
from steprule.engines.stages import Share, Stages, run_through, sent
from steprule.formats.storage import ROUNDING_STEP, Storage
from steprule.language.form import Form
from steprule.language.passes import shared_levels_of
from steprule.language.rule import SUPPLIED, shape_numbers

# Elements of formats that are read at once.
_AT_ONCE = 1 << 22
# Numbers that a parameter has of its own.
_SUPPLIED = set(SUPPLIED)


class ForeachRunner(LeafRunner):
    """Updates leaves in lists, those together whose groups have the same numbers.

    A step like the last one reuses its lists; any other one gathers its leaves anew.
    """

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        super().__init__(form, leaves, update_together, update_in_stages)
        self._lists: KeptLists | None = None

    def run(self) -> None:
        grads, kept = self._taken_grads(), self._lists
        # A first update has numbers of its own; a guard tells that all gradients are there.
        if any(self._is_first) or self._guard is None or None in grads or torch.is_grad_enabled():
            self._lists = None
        elif kept is None or not kept.hold():
            self._lists = kept = self._new_lists(grads)
        if self._lists is None or not self._lists.update(grads, self._numbers):
            self.update_leaves(grads)
        self.let_go()

    def _new_lists(self, grads: Sequence[Tensor]) -> KeptLists | None:
        leaves = self._leaves_with(grads)[1]
        return KeptLists(self.form, leaves) if KeptLists.takes(self.form, leaves) else None


class KeptLists:
    """Parameters and state in lists, for steps in which all are at the same step.

    Args:
        form: the form of all.
        leaves: the parameters, such that :meth:`takes` holds; their gradients are let go of.
    """

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        self._form, self._leaves = form, leaves
        self._states = states = [leaf.state for leaf in leaves]
        self._grad_dtypes = [leaf.grad.dtype for leaf in leaves]
        self._distinct_groups = tuple(dict.fromkeys(leaf.group for leaf in leaves))
        for leaf in leaves:
            leaf.grad = leaf.param  # which is alive anyhow
        names = _names(form, leaves[0].storage)
        self._columns = {name: [state[name] for state in states] for name in names}
        self._same = {name: IdentityGuard(column) for name, column in self._columns.items()}
        self._tensors = [tensor for column in self._columns.values() for tensor in column]
        self._guard = TensorGuard(self._tensors) if self._tensors else None
        self._alike: dict[int, int] = {}
        self._parts: list[tuple[int, list[int], Bucket]] = []

    @staticmethod
    def takes(form: Form, leaves: Sequence[Leaf]) -> bool:
        """Tell whether all state is plain tensors, and each count of one kind and in one place."""
        names, states = _names(form, leaves[0].storage), [leaf.state for leaf in leaves]
        are_plain = all(type(state[name]) is Tensor for name in names for state in states)
        if not are_plain:
            return False
        counts = [[state[name] for state in states] for name in _counts(form)]
        return all(
            len({(count.dtype, count.device) for count in of_name}) <= 1
            and of_name[0].is_floating_point()
            for of_name in counts
        )

    def hold(self) -> bool:
        """Tell whether the state is still these tensors, and they are as they were."""
        are_same = all(
            same.holds([state.get(name) for state in self._states])
            for name, same in self._same.items()
        )
        return are_same and (self._guard is None or self._guard.holds(self._tensors))

    def update(self, grads: Sequence[Tensor], numbers: Mapping[int, Numbers]) -> bool:
        """Update all; False, and nothing done, if they are not at the same step."""
        own = self._own_numbers()
        if own is None:
            return False
        alike = alike_groups(self._distinct_groups, numbers)
        if alike != self._alike:
            self._alike, self._parts = alike, self._parts_of(alike)
        for group, places, bucket in self._parts:
            scalars = {**numbers[group], **own}
            if self._form.needs_shape:
                scalars.update(shape_numbers(self._leaves[places[0]].shape))
            if "machine_eps" in self._form.scalars:
                scalars["machine_eps"] = torch.finfo(bucket.dtype).eps
            bucket.update([grads[i] for i in places], scalars)
        for name in ("step", ROUNDING_STEP):
            if name in self._columns:
                torch._foreach_add_(self._columns[name], 1.0)
        return True

    def _own_numbers(self) -> dict[str, Any] | None:
        """Return what each parameter has of its own; None unless it is the same for all."""
        own: dict[str, Any] = {"first": False}
        for name in _counts(self._form):
            if name in self._form.scalars or name != "step":
                found = set(torch.stack(self._columns[name]).tolist())
                if len(found) > 1:
                    return None
                own[name] = found.pop() + (name == "step")
        return own

    def _parts_of(self, alike: dict[int, int]) -> list[tuple[int, list[int], Bucket]]:
        places: dict[Any, list[int]] = {}
        share = shares_of(self._leaves, self._form)
        for i, leaf in enumerate(self._leaves):
            param, shape = leaf.param, leaf.shape if self._form.needs_shape else ()
            key = (alike[leaf.group], param.dtype, param.device, shape, share[i])
            places.setdefault(key, []).append(i)
        return [
            (
                group,
                where,
                Bucket(
                    self._form,
                    [self._leaves[i] for i in where],
                    [self._grad_dtypes[i] for i in where],
                ),
            )
            for (group, *_), where in places.items()
        ]


def update_together(form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers]) -> None:
    """Update leaves, those with equal numbers and dtypes together."""
    run_through(update_in_stages(form, leaves, numbers))


def update_in_stages(form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers]) -> Stages:
    """Update leaves, as :func:`update_together`, by a rule with sums over several parameters."""
    buckets: dict[Any, tuple[dict[str, Any], list[Leaf]]] = {}
    alike = alike_groups((leaf.group for leaf in leaves), numbers)
    has_own = form.rule.counts_steps or form.scalar_slots or _SUPPLIED & set(form.scalars)
    steps, others = [], []
    share = shares_of(leaves, form)
    for leaf, share_of_leaf in zip(leaves, share, strict=True):
        own: dict[str, Any] = {}
        step = supply_scalars(form, leaf, own) if has_own else None
        if isinstance(step, Tensor) and step.is_floating_point():
            steps.append(step)
        elif step is not None:
            others.append((leaf, step))
        key = (
            *(alike[leaf.group], leaf.param.dtype, leaf.param.device, share_of_leaf),
            *own.values(),
        )
        found = buckets.get(key)
        if found is None:
            found = buckets[key] = ({**numbers[leaf.group], **own}, [])
        found[1].append(leaf)
    running = []
    for scalars, bucket in buckets.values():
        grads = [leaf.grad for leaf in bucket]
        lists = Bucket(form, bucket, [grad.dtype for grad in grads])
        running.append(lists.stages(grads, scalars))
    yield from _side_by_side(running, form)
    if leaves and leaves[0].storage.count == ROUNDING_STEP:
        steps += [leaf.state[ROUNDING_STEP] for leaf in leaves]
    if steps:
        torch._foreach_add_(steps, 1.0)
    for leaf, step in others:
        advance(leaf, step)


def _side_by_side(running: Sequence[Stages], form: Form) -> Stages:
    """Run updates that each ask for all sums of a form over several parameters, level by level."""
    recording = form.recording()
    asked = [next(one, []) for one in running]
    for level in shared_levels_of(recording):
        nothing = [Share(recording.shared_keys[x.result], [], [], [], []) for x in level]
        totals = yield [share for of_one in asked for share in of_one] or nothing
        asked = [sent(one, totals) or [] for one in running]


def alike_groups(groups: Iterable[int], numbers: Mapping[int, Numbers]) -> dict[int, int]:
    """Return for each group the first one that has the same numbers."""
    first: dict[Any, int] = {}
    return {
        group: first.setdefault(tuple(numbers[group].values()), group)
        for group in dict.fromkeys(groups)
    }


def shares_of(leaves: Sequence[Leaf], form: Form) -> list[int]:
    """Return in which share of the work each parameter is.

    Formats are read into float32 tensors, which are not to be there for all parameters at once.
    """
    if not leaves or leaves[0].storage.is_plain or form.recording().shared_reductions:
        return [0] * len(leaves)
    before = itertools.accumulate((leaf.param.numel() for leaf in leaves), initial=0)
    return [elements // _AT_ONCE for elements, _ in zip(before, leaves, strict=False)]


def _counts(form: Form) -> tuple[str, ...]:
    return (*(["step"] * form.rule.counts_steps), *form.scalar_slots)


def _names(form: Form, storage: Storage) -> tuple[str, ...]:
    count = (ROUNDING_STEP,) if storage.count == ROUNDING_STEP else ()
    return (*_counts(form), *count, *storage.keys)
