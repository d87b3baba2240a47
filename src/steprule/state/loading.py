"""Saved state of a parameter, in the formats that its group asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.placing import placed, whole_of
from steprule.distributed.shards import (
    is_sharded,
    local_of,
    local_shape,
    spreads_alike,
    wrapped,
)
from steprule.formats import Column, Format
from steprule.formats.choices import param_format, storing_of
from steprule.formats.floating import FLOATING, FloatingFormat, compute_dtype
from steprule.formats.storage import ROUNDING_STEP, as_stored, key_of
from steprule.language.rule import Rule
from steprule.state.copying import cast_state, laid_out, own_copy
from steprule.state.making import scalar_dtype
from steprule.state.storing import (
    column_shape,
    columns_in,
    format_in,
    put_array,
    wanted_format,
)


def loaded_entry(
    rule: Rule, options: Mapping[str, Any], param: Tensor, entry: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a parameter's saved state as it is kept.

    All tensors are copies. What is in the wanted format already is copied bit for bit, to the
    parameter's device; anything else is decoded and encoded anew, to nearest. Plain tensors take
    the parameter's dtype where the group asks for no format, as in torch.

    Args:
        rule: the rule.
        options: the group as it will be.
        param: the parameter.
        entry: what was saved, checked.
    """
    storing = storing_of(options, rule.options)
    ours: dict[str, Any] = {}
    for name, slot in rule.slots.items():
        saved = entry.get(name)
        if slot.is_scalar and isinstance(saved, (int, float)):  # as torch once kept them
            dtype = torch.float64 if slot.is_float64 else scalar_dtype()
            saved = torch.tensor(float(saved), dtype=dtype)
        if not isinstance(saved, Tensor):
            continue
        if slot.is_scalar:
            # One number for a whole parameter was never rounded to the parameter's dtype.
            device = param.device if options.get("capturable") else saved.device
            ours[name] = own_copy(whole_of(saved).to(device=device))
            continue
        if slot.is_square:
            whole = whole_of(saved).to(device=local_of(param).device, dtype=compute_dtype(param))
            ours[name] = own_copy(whole)
            continue
        present = format_in(name, entry)
        wanted = wanted_format(slot, options, storing, param)
        is_plain = isinstance(present, FloatingFormat)
        if wanted is None and is_plain:
            continue  # cast as in torch
        wanted = wanted or FLOATING[param.dtype]
        if present.columns == wanted.columns:
            keys = [key_of(name, column.part) for column in wanted.columns]
            copies = [
                _column(entry[k], c, param) for k, c in zip(keys, wanted.columns, strict=True)
            ]
            ours.update(zip(keys, copies, strict=True))
            continue
        shape = saved.shape if is_plain else param.shape
        value = _numbers(name, entry, present, param, shape)
        put_array(name, ours, wanted, param, value, shape)
    ours.update(_beside_param(entry, param, param_format(storing, param)))
    if ROUNDING_STEP in entry:
        ours[ROUNDING_STEP] = own_copy(entry[ROUNDING_STEP])
    parts = tuple(f"{name}:" for name in ("param", *rule.slots))
    others = {
        key: value
        for key, value in entry.items()
        if key not in ours and not (isinstance(key, str) and key.startswith(parts))
    }
    cast: dict[str, Any] = cast_state(param, others, None, options)
    # In the order in which it was saved.
    made = {**cast, **ours}
    return {**{key: made[key] for key in entry if key in made}, **made}


def _column(saved: Tensor, column: Column, param: Tensor) -> Tensor:
    """Return a copy of a saved column, where the parameter is."""
    if is_sharded(param) and column.elements > 1 and saved.dim() == 1:
        saved = whole_of(saved).reshape(column_shape(column, param.shape))  # as it can be sharded
    return laid_out(saved, param, saved.dtype, param.device)


def _numbers(
    name: str, entry: Mapping[str, Any], present: Format, param: Tensor, shape: torch.Size
) -> Tensor:
    """Return an array's numbers, of a sharded parameter those that are here."""
    keys = [key_of(name, column.part) for column in present.columns]
    compute = compute_dtype(param)
    # What blocks share may be in one axis, as they straddle shards: the whole is read then.
    is_flat = any(
        c.elements > 1 and entry[k].dim() == 1 for c, k in zip(present.columns, keys, strict=True)
    )
    parts = [] if is_flat or not is_sharded(param) else [placed(entry[k], param) for k in keys]
    if parts and all(spreads_alike(part, param) for part in parts):
        columns = [local_of(part).to(param.device) for part in parts]
        return present.read(as_stored(present, columns), compute, local_shape(shape, param))
    columns = [whole_of(entry[key]).to(param.device) for key in keys]
    value = present.read(as_stored(present, columns), compute, shape)
    return local_of(placed(value, param))


def _beside_param(entry: Mapping[str, Any], param: Tensor, wanted: Format) -> dict[str, Tensor]:
    """Return what is kept beside a parameter, of what was kept there by the same format or another.

    The parameter itself is the model's, which has loaded it.
    """
    keys = [key_of("param", column.part) for column in wanted.columns[1:]]
    if not keys or not any(str(key).startswith("param:") for key in entry):
        return {}
    present = format_in("param", {**entry, "param": param})
    if present.columns[0].dtype is not param.dtype:  # it was kept for other weights
        return {}
    if present.columns == wanted.columns:
        return {k: laid_out(entry[k], param, entry[k].dtype, param.device) for k in keys}
    parts = {k: laid_out(x, param, x.dtype, param.device) for k, x in _parts_of_param(entry)}
    columns = columns_in("param", {**parts, "param": param.detach()}, present)
    here = local_of(param)
    value = present.read(columns, compute_dtype(param), here.shape)
    made = [
        torch.zeros_like(here, dtype=column.dtype, requires_grad=False) for column in wanted.columns
    ]
    wanted.write(made, value)
    beside = [wrapped(x, param) for x in made[1:]] if is_sharded(param) else made[1:]
    return dict(zip(keys, beside, strict=True))


def _parts_of_param(entry: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [(key, value) for key, value in entry.items() if str(key).startswith("param:")]


def plain_entry(rule: Rule, param: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state as torch's optimizers keep it: tensors of its own dtype."""
    plain: dict[str, Any] = {}
    for key, value in entry.items():
        slot = rule.slots.get(key)
        if ":" in str(key) or key == ROUNDING_STEP:
            continue
        if slot is None or slot.is_scalar or slot.is_square or not isinstance(value, Tensor):
            plain[key] = value
            continue
        present = format_in(key, entry)
        if isinstance(present, FloatingFormat):
            plain[key] = value.to(param.dtype)
        else:
            columns = columns_in(key, entry, present)
            here = present.read(columns, param.dtype, local_shape(param.shape, param))
            plain[key] = wrapped(here, param) if is_sharded(param) else here
    return plain
