"""Parameters that have a gradient, as leaves: all are checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.regions import Region, region_of
from steprule.distributed.shards import Shard, is_dtensor, local_of
from steprule.engines import registry
from steprule.engines.engine import Leaf
from steprule.formats.choices import check_param, param_format
from steprule.formats.floating import FLOATING, FloatingFormat, has_memory, transform_level
from steprule.formats.random_bits import param_key
from steprule.language.form import Form
from steprule.planning.settings import Context, Kind, Settings
from steprule.state.making import check_state, ensure_state


def checked_leaves(
    context: Context, settings: list[Settings], shards: Mapping[Tensor, Shard]
) -> list[Leaf]:
    """Return a leaf for every parameter that has a gradient.

    Args:
        context: the optimizer's parts.
        settings: of each group.
        shards: what is here of those parameters that are taken shard by shard.

    Raises:
        RuntimeError: a gradient or state that can't be this parameter's, named; or of a kind that
            the rule does not take.
    """
    found = []
    for i, of_group in enumerate(settings):
        for position, param in enumerate(of_group.params):
            if param.grad is not None and context.has(param):
                leaf = _checked_leaf(context, of_group, i, position)
                check_state(of_group.kind.rule, leaf.param, leaf.state, leaf.label)
                if context.owners is not None:
                    leaf.own_number = context.owners.parts[param].number
                if param in shards:
                    _take_part(leaf, shards[param])
                found.append(leaf)
    return found


def _take_part(leaf: Leaf, shard: Shard) -> None:
    """Have a leaf be what is here of its parameter, and of its gradient.

    Raises:
        RuntimeError: what is here has no memory.
    """
    if not is_dtensor(leaf.grad):
        raise RuntimeError(
            f"the gradient of {leaf.label} is a plain tensor, the parameter is sharded: make it a "
            "DTensor that is spread alike (distribute_tensor(grad, param.device_mesh, "
            "param.placements), or DTensor.from_local of this process's part)"
        )
    leaf.shard, leaf.param, leaf.grad = shard, shard.local, shard.part_of(leaf.grad)
    if leaf.grad.shape != leaf.param.shape:
        raise RuntimeError(
            f"what is here of the gradient of {leaf.label} has shape {tuple(leaf.grad.shape)}, of "
            f"the parameter {tuple(leaf.param.shape)}: it was made with parts of other sizes"
        )
    for what, tensor in (("", leaf.param), ("the gradient of ", leaf.grad)):
        if not has_memory(tensor):
            raise RuntimeError(
                f"{what}{leaf.label} has no memory here (its storage was freed): gather or compute "
                "it again before step()"
            )


def make_state(context: Context, leaf: Leaf, settings: Settings) -> None:
    """Give a leaf what state it lacks (someone may have cleared it since the last step)."""
    storing = settings.storing
    group = context.groups[leaf.group]
    kind = context.kind_of(group)
    options = kind.options_of(group)
    owner = leaf.owner
    leaf.storage = ensure_state(
        kind.rule,
        options,
        owner,
        context.state,
        context.fresh,
        storing,
        counts_on_device=counts_on_device(settings.form, options, owner),
    )
    if leaf.storage.count is not None:
        identity = context.place_of(leaf.group, leaf.position).identity
        leaf.random_key = param_key(storing.rounding_seed, identity)
        leaf.region = _region_of(leaf)
    leaf.state = context.state.get(owner, {})
    if leaf.shard is not None:
        leaf.entry = leaf.state
        leaf.state = {name: local_of(value) for name, value in leaf.entry.items()}
    leaf.is_first = owner in context.fresh


def _region_of(leaf: Leaf) -> Region | None:
    """Return which elements are here of a sharded parameter whose elements have random bits.

    Raises:
        RuntimeError: it is sharded in such a way that they have no order.
    """
    if leaf.number < 0 or leaf.shard is None:
        return None
    region = region_of(leaf.shard.owner)
    if region is None:
        raise RuntimeError(
            f"{leaf.label} is sharded along several dimensions that are not its first: rounding at "
            "random must not depend on that, and can't follow it. Put it in a group with "
            "state_format='float32' and param_rounding='nearest'"
        )
    return region


def counts_on_device(form: Form, options: Mapping[str, Any], param: Tensor) -> bool:
    """Tell whether step counts and scalar slots stand beside the parameter, not on the host.

    A count on a device would be waited for, unless it is used there alone: in a graph, by torch's
    fused optimizers (whose checkpoints have it there), where a step may be called off on the
    device, and where the numbers are made there.
    """
    if options.get("capturable"):
        return True
    if param.device.type not in registry.kernel_devices():
        return False
    return bool(options.get("fused") or form.may_be_called_off or form.slots_of_sums)


def _checked_leaf(context: Context, settings: Settings, group: int, position: int) -> Leaf:
    param = settings.params[position]
    grad = param.grad
    assert grad is not None
    options = context.groups[group]
    label = context.place_of(group, position).label
    if param.is_meta and options.get("fused"):
        # As torch: somebody forgot to give a model its memory, and a step would do nothing.
        raise RuntimeError(
            "`fused=True` requires all the params to be floating point Tensors of supported "
            f"devices, but {label} is on meta: give the model its memory first (to_empty)"
        )
    _check_kind(context, settings.kind, param, grad, label)
    if transform_level(grad) > transform_level(param):
        raise RuntimeError(
            f"the gradient of {label} belongs to a transform of torch.func (grad, vmap...), the "
            "parameter does not, so that it must not change there: have the function return "
            "gradients and call step() outside of it, or make the parameters inside"
        )
    for what, tensor in (("", param), ("the gradient of ", grad)):
        if not has_memory(tensor):
            raise RuntimeError(
                f"{what}{label} has no memory (its storage was freed): gather or compute it again "
                "before step()"
            )
    if grad.shape != param.shape:
        raise RuntimeError(
            f"the gradient of {label} has shape {tuple(grad.shape)}, the parameter has "
            f"{tuple(param.shape)}: call zero_grad() after changing a parameter's data"
        )
    if grad.device != param.device or grad.is_complex() != param.is_complex():
        raise RuntimeError(
            f"the gradient of {label} is {grad.dtype} on {grad.device}, the parameter is "
            f"{param.dtype} on {param.device}: call zero_grad() after moving a parameter"
        )
    if grad.is_sparse and settings.form.decays_every_row:
        raise RuntimeError(
            f"weight_decay option is not compatible with sparse gradients: {label} has one, and "
            "decay would touch every row of it. Put it in a group with weight_decay=0"
        )
    _check_storing(settings, param, grad, label)
    form = settings.form
    if grad.is_sparse and form.rule.is_recorded and form.recording().shared_reductions:
        raise RuntimeError(
            f"{settings.kind.name} sums over several parameters, of which {label} has a sparse "
            "gradient: make it dense (sparse=False in the embedding)"
        )
    state = context.state.get(param, {})
    return Leaf(param, grad, state, group, position, param in context.fresh, label)


def _check_storing(settings: Settings, param: Tensor, grad: Tensor, label: str) -> None:
    """Refuse a parameter that can't have the formats that its group asks for."""
    storing = settings.storing
    if storing.is_default:
        return
    try:
        check_param(storing, param, label)
    except ValueError as error:
        raise RuntimeError(str(error)) from None
    is_plain = isinstance(param_format(storing, param), FloatingFormat)
    if grad.is_sparse and not (storing.state_format == "param" and is_plain):
        raise RuntimeError(
            f"state_format={storing.state_format!r} and param_rounding={storing.param_rounding!r} "
            f"are for dense gradients: {label} has a sparse one, which changes some rows only. Put "
            "it in a group with state_format='param' and param_rounding='nearest', or make the "
            "gradient dense (sparse=False in the embedding)"
        )


def _check_kind(context: Context, kind: Kind, param: Tensor, grad: Tensor, label: str) -> None:
    """Refuse a gradient or parameter of a kind that the rule does not take."""
    name, rule = kind.name, kind.rule
    for what, tensor in (("", param), ("the gradient of ", grad)):
        if tensor.dtype not in FLOATING:
            raise RuntimeError(
                f"{name} updates floating-point and complex numbers: {what}{label} is "
                f"{tensor.dtype}. Leave it out of the optimizer, or convert it (param.float())"
            )
    if param.is_complex() and not rule.takes_complex:
        raise RuntimeError(f"{name} does not support complex parameters: {label} is one")
    if grad.layout is torch.strided:
        if rule.sparse == "only":
            raise RuntimeError(
                f"{name} does not support dense gradients, please consider Adam instead: "
                f"{label} has one"
            )
    elif rule.sparse == "refused" or not grad.is_sparse:
        raise RuntimeError(
            f"{name} does not support sparse gradients: {label}, of shape "
            f"{tuple(param.shape)}, has one (layout {grad.layout}). Make it dense "
            "(sparse=False in the embedding, or param.grad = param.grad.to_dense()), or "
            f"give it to one of {', '.join(context.takers_of_sparse)}"
        )
