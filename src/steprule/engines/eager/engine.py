"""The eager engine: the rule on tensors, one parameter at a time.

This is the meaning of a rule; the other engines are tested against it. It takes any device and
dtype, tensors as hyperparameters, and lets autograd through where ``differentiable`` is set.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steprule.engines.eager.stages import stages_of
from steprule.engines.eager.update import advance, new_values, supply_scalars, write_array
from steprule.engines.engine import Leaf, Numbers, Runner
from steprule.engines.leaf_runner import LeafRunner
from steprule.engines.stages import Stages
from steprule.language.form import Form


class EagerEngine:
    """Calls the rule on each parameter in turn."""

    name = "eager"
    by_address = False

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuses only gradients of some rows: every other engine falls back to this one."""
        if leaf.grad.is_sparse and not form.touches_every_row:
            return "the gradient is sparse"
        return None

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        return None

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        return LeafRunner(form, leaves, update_each, update_in_stages)

    def update_in_graph(self, form: Form, leaf: Leaf, numbers: dict[str, Any]) -> None:
        """Update a leaf by the rule's own function."""
        update_one(form, leaf, numbers)


def update_each(form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers]) -> None:
    """Update the leaves one after the other."""
    for leaf in map(_with_dense_grad, leaves):
        update_one(form, leaf, dict(numbers[leaf.group]))


def update_in_stages(form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers]) -> Stages:
    """Update the leaves by a rule with sums over several parameters."""
    return stages_of(form, list(map(_with_dense_grad, leaves)), numbers, update_one)


def _with_dense_grad(leaf: Leaf) -> Leaf:
    return replace(leaf, grad=leaf.grad.to_dense()) if leaf.grad.is_sparse else leaf


def update_one(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    """Update a leaf, given its group's numbers."""
    if torch.is_grad_enabled():
        _update_differentiably(form, leaf, scalars)
    else:
        _update(form, leaf, scalars)


def _update(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    step = supply_scalars(form, leaf, scalars)
    new = new_values(form, leaf, leaf.param, scalars)
    for name in ("param", *form.array_slots):
        if name == "param" or name in leaf.state:
            write_array(leaf, name, new[name])
    for name in form.scalar_slots:
        value = torch.as_tensor(new[name], dtype=leaf.state[name].dtype)
        if not value.is_meta or leaf.state[name].is_meta:  # there is no number to keep
            leaf.state[name].copy_(value)
    advance(leaf, step)


def _update_differentiably(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    # Autograd keeps the old values for its backward pass, so state is replaced, not overwritten.
    step = supply_scalars(form, leaf, scalars)
    if isinstance(step, Tensor) and step.requires_grad:
        raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
    new = new_values(form, leaf, leaf.param.clone(), scalars)
    for name in form.array_slots:
        old = leaf.state.get(name)
        if old is None:
            continue
        value = new[name].to(old.dtype.to_real())
        leaf.state[name] = torch.view_as_complex(value) if old.is_complex() else value
    for name in form.scalar_slots:
        leaf.state[name] = torch.as_tensor(new[name], dtype=leaf.state[name].dtype)
    param = new["param"].to(leaf.param.dtype.to_real())
    leaf.param.copy_(torch.view_as_complex(param) if leaf.param.is_complex() else param)
    if step is not None:
        leaf.state["step"] = step + 1
