"""The eager engine: the rule on tensors, one parameter at a time.

This is the meaning of a rule; the other engines are tested against it. It takes any device and
dtype, tensors as hyperparameters, and lets autograd through where ``differentiable`` is set.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steprule import ops
from steprule.engines import Leaf, Numbers
from steprule.engines.batch import Batch, LeafBatch
from steprule.formats import format_of
from steprule.formats.floating import compute_dtype, real_view
from steprule.language.form import Form
from steprule.language.recording import check_count


class TensorVocabulary(threading.local):
    """The operations of :mod:`steprule.ops` on tensors.

    ``dtype`` is that of the computation under way on this thread: a choice between two plain
    numbers needs it (torch would take its default dtype).
    """

    dtype = torch.float32
    sqrt = staticmethod(torch.sqrt)
    exp = staticmethod(torch.exp)
    log = staticmethod(torch.log)
    sign = staticmethod(torch.sign)

    def maximum(self, a: Any, b: Any) -> Tensor:
        """The larger; a plain number takes the dtype of the tensor."""
        return torch.maximum(*self._tensors(a, b))

    def minimum(self, a: Any, b: Any) -> Tensor:
        """The smaller; a plain number takes the dtype of the tensor."""
        return torch.minimum(*self._tensors(a, b))

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        """``a`` or ``b`` by a condition: truth values, or numbers that are not 0."""
        if not isinstance(condition, Tensor):
            return a if condition else b
        if condition.dtype is not torch.bool:
            condition = condition != 0
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return torch.where(condition, *self._tensors(a, b))
        choices = torch.tensor([b, a], dtype=self.dtype, device=condition.device)
        return choices[condition.to(torch.int64)]

    def lerp(self, a: Any, b: Any, weight: Any) -> Any:
        """torch's own, whose rounding its optimizers have, wherever it takes the operands."""
        plain = isinstance(a, Tensor) and isinstance(b, Tensor) and not isinstance(weight, Tensor)
        return torch.lerp(a, b, weight) if plain else a + weight * (b - a)

    def _tensors(self, a: Any, b: Any) -> list[Tensor]:
        """Both as tensors of numbers: truth values are 1 or 0."""
        like = a if isinstance(a, Tensor) else b
        dtype = self.dtype if like.dtype is torch.bool else like.dtype
        return [
            (x.to(dtype) if x.dtype is torch.bool else x)
            if isinstance(x, Tensor)
            else torch.tensor(x, dtype=dtype, device=like.device)
            for x in (a, b)
        ]


VOCABULARY = TensorVocabulary()
ops.register_vocabulary(Tensor, VOCABULARY)


class EagerEngine:
    """Calls the rule on each parameter in turn."""

    name = "eager"

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Nothing is refused: every other engine falls back to this one."""
        return None

    def apply(self, form: Form, leaves: Sequence[Leaf], numbers: Numbers) -> None:
        """Update the leaves one after the other."""
        for leaf in leaves:
            if torch.is_grad_enabled():
                _update_differentiably(form, leaf, dict(numbers[leaf.group]))
            else:
                _update(form, leaf, dict(numbers[leaf.group]))

    def batch(self, form: Form, leaves: Sequence[Leaf]) -> Batch:
        """The same leaves, to be updated again."""
        return LeafBatch(self, form, leaves)


def _update(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    step = supply_scalars(form, leaf, scalars)
    new = new_values(form, leaf, leaf.param, scalars)
    for name in ("param", *form.array_slots):
        target = leaf.param if name == "param" else leaf.state.get(name)
        if target is not None:
            format_of(target).write(target, new[name])
    for name in form.scalar_slots:
        leaf.state[name].copy_(torch.as_tensor(new[name]))
    advance(leaf, step)


def advance(leaf: Leaf, step: Tensor | int | None) -> None:
    """Count one more step."""
    if isinstance(step, Tensor):
        step += 1
    elif step is not None:
        leaf.state["step"] = step + 1


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
        leaf.state[name] = torch.as_tensor(new[name]).to(leaf.state[name].dtype)
    param = new["param"].to(leaf.param.dtype.to_real())
    leaf.param.copy_(torch.view_as_complex(param) if leaf.param.is_complex() else param)
    if step is not None:
        leaf.state["step"] = step + 1


def new_values(form: Form, leaf: Leaf, param: Tensor, scalars: dict[str, Any]) -> dict[str, Any]:
    """What the rule makes of a leaf: the new param and slots by name, in the computing dtype."""
    compute = VOCABULARY.dtype = compute_dtype(leaf.param)
    slots = []
    for name in form.rule.slots:
        stored = leaf.state.get(name) if name in form.array_slots else None
        if stored is not None:
            slots.append(format_of(stored).read(stored, compute))
        else:
            slots.append(scalars.pop(name, None))
    arrays = [real_view(x).to(compute) for x in (param, leaf.grad)]
    returned = form(*arrays, *slots, **scalars)
    if not isinstance(returned, tuple):
        returned = (returned,)
    names = ("param", *form.rule.slots)
    check_count(form.rule.name, names, returned)
    # An array handed on to another place may be a view of what is written first.
    inputs = dict(zip(names, [arrays[0], *slots], strict=True))
    return {
        name: value.clone() if _is_other(name, value, inputs) else value
        for name, value in zip(names, returned, strict=True)
    }


def _is_other(name: str, value: Any, inputs: dict[str, Any]) -> bool:
    return isinstance(value, Tensor) and any(
        value is other for key, other in inputs.items() if key != name
    )


def supply_scalars(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> Tensor | int | None:
    """Add to ``scalars`` what depends on the parameter: step, first, the scalar slots.

    Returns:
        What counts the steps, not yet advanced; None if the rule counts none.
    """
    keep_tensors = torch.is_grad_enabled() or form.capturable
    step: Tensor | int | None = leaf.state["step"] if form.rule.counts_steps else None
    if "step" in form.scalars and step is not None:
        if isinstance(step, Tensor):
            scalars["step"] = (_precise(step) if keep_tensors else step.item()) + 1
        else:
            scalars["step"] = step + 1
    if "first" in form.scalars:
        scalars["first"] = leaf.is_first
    if "machine_eps" in form.scalars:
        scalars["machine_eps"] = torch.finfo(leaf.param.dtype).eps
    for name in form.scalar_slots:
        stored = leaf.state[name]
        scalars[name] = _precise(stored) if keep_tensors else stored.item()
    return step


def _precise(scalar: Tensor) -> Tensor:
    # 1 - 0.999 is 5e-5 wrong in float32; MPS has nothing better.
    return scalar if scalar.device.type == "mps" else scalar.to(torch.float64)
