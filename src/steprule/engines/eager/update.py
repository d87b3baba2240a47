"""The update of one leaf by the rule's own function: parts of it serve other engines too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steprule.distributed.placing import placed
from steprule.distributed.regions import region_of
from steprule.distributed.shards import is_dtensor, local_of, spread_as, whole_of, wrapped
from steprule.engines.engine import Leaf
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.formats.floating import compute_dtype, real_view
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.form import Form
from steprule.language.recording import check_count
from steprule.language.rule import listed, shape_numbers
from steprule.matrix_ops.eigen import LABELS


def advance(leaf: Leaf, step: Tensor | int | None) -> None:
    """Count one more step."""
    if leaf.storage.count == ROUNDING_STEP:
        leaf.state[ROUNDING_STEP] += 1
    if isinstance(step, Tensor):
        step += 1
    elif step is not None:
        leaf.state["step"] = step + 1


def new_values(form: Form, leaf: Leaf, param: Tensor, scalars: dict[str, Any]) -> dict[str, Any]:
    """Return the new param and slots of a leaf by name, in the computing dtype."""
    compute = VOCABULARY.dtype = compute_dtype(leaf.param)
    LABELS.of = (leaf.label,)
    # What rules with square matrices do is done on the whole, by every rank that has a part.
    is_gathered = bool(form.side_slots) and is_dtensor(leaf.param)
    read = whole_array if is_gathered else read_array
    slots = []
    for name in form.rule.slots:
        is_array = name in form.array_slots and name in leaf.state
        slots.append(read(leaf, name, compute) if is_array else scalars.pop(name, None))
    if is_gathered:
        arrays = [whole_array(leaf, "param", compute), whole_of(leaf.grad).to(compute)]
    else:
        grad = real_view(leaf.grad).to(compute)
        arrays = [leaf.storage.read("param", param, leaf.state, compute), grad]
    returned = listed(form(*arrays, *slots, **scalars))
    names = ("param", *form.rule.slots)
    check_count(form.rule.name, names, returned)
    # An array handed on to another place may be a view of what is written first.
    inputs = dict(zip(names, [arrays[0], *slots], strict=True))
    return {
        name: value.clone() if _is_other(name, value, inputs) else value
        for name, value in zip(names, returned, strict=True)
    }


def read_array(leaf: Leaf, name: str, compute: torch.dtype) -> Tensor:
    """Return an array of a leaf, as reals of the computing dtype."""
    return leaf.storage.read(name, leaf.param, leaf.state, compute)


def whole_array(leaf: Leaf, name: str, compute: torch.dtype) -> Tensor:
    """Return all of an array of a sharded parameter, to which every rank must come."""
    here = leaf.storage.read(name, local_of(leaf.param), _local_state(leaf), compute)
    is_spread = name == "param" or is_dtensor(leaf.state[name])
    param = leaf.param
    return whole_of(wrapped(here, param)) if is_spread and is_dtensor(param) else here


def _local_state(leaf: Leaf) -> dict[str, Any]:
    return {key: local_of(value) for key, value in leaf.state.items() if isinstance(value, Tensor)}


def write_array(leaf: Leaf, name: str, value: Tensor) -> None:
    """Store an array of a leaf; its step is not yet advanced."""
    target = leaf.param if name == "param" else leaf.state[name]
    if is_dtensor(target) and is_dtensor(leaf.param) and not is_dtensor(value):  # it was gathered
        region = region_of(leaf.param) if leaf.storage[name].is_random else None
        here = local_of(placed(value, leaf.param))
        param, state = local_of(leaf.param), _local_state(leaf)
        leaf.storage.write(name, param, state, here, leaf.random_key, region)
        return
    if is_dtensor(value):  # of a rule that takes sharded parameters whole
        value = spread_as(value, target)
    leaf.storage.write(name, leaf.param, leaf.state, value, leaf.random_key, leaf.region)


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
    if form.needs_shape:
        scalars.update(shape_numbers(leaf.shape))
    for name in form.scalar_slots:
        stored = leaf.state[name]
        scalars[name] = _precise(stored) if keep_tensors else stored.item()
    return step


def _precise(scalar: Tensor) -> Tensor:
    # 1 - 0.999 is 5e-5 wrong in float32; MPS has nothing better.
    return scalar if scalar.device.type == "mps" else scalar.to(torch.float64)
