"""Saved state of a parameter, in the formats that its group asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.formats import Format
from steprule.formats.choices import param_format, storing_of
from steprule.formats.floating import FLOATING, FloatingFormat, compute_dtype
from steprule.formats.storage import ROUNDING_STEP, key_of
from steprule.language.rule import Rule
from steprule.state.copying import cast_state, laid_out, own_copy
from steprule.state.making import scalar_dtype
from steprule.state.storing import columns_in, format_in, put_array, wanted_format


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
            ours[name] = own_copy(saved.to(device=device))
            continue
        present = format_in(name, entry)
        wanted = wanted_format(slot, options, storing, param)
        is_plain = isinstance(present, FloatingFormat)
        if wanted is None and is_plain:
            continue  # cast as in torch
        wanted = wanted or FLOATING[param.dtype]
        columns = columns_in(name, entry, present)
        if present.columns == wanted.columns:
            keys = [key_of(name, column.part) for column in wanted.columns]
            copies = [laid_out(x, param, x.dtype, param.device) for x in columns]
            ours.update(zip(keys, copies, strict=True))
            continue
        columns = [x.to(param.device) for x in columns]
        shape = saved.shape if is_plain else param.shape
        value = present.read(columns, compute_dtype(param), shape)
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
    columns = columns_in("param", {**entry, "param": param.detach()}, present)
    value = present.read([x.to(param.device) for x in columns], compute_dtype(param), param.shape)
    made = [
        torch.zeros_like(param, dtype=column.dtype, requires_grad=False)
        for column in wanted.columns
    ]
    wanted.write(made, value)
    return dict(zip(keys, made[1:], strict=True))


def plain_entry(rule: Rule, param: Tensor, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parameter's state as torch's optimizers keep it: tensors of its own dtype."""
    plain: dict[str, Any] = {}
    for key, value in entry.items():
        slot = rule.slots.get(key)
        if ":" in str(key) or key == ROUNDING_STEP:
            continue
        if slot is None or slot.is_scalar or not isinstance(value, Tensor):
            plain[key] = value
            continue
        present = format_in(key, entry)
        if isinstance(present, FloatingFormat):
            plain[key] = value.to(param.dtype)
        else:
            columns = columns_in(key, entry, present)
            plain[key] = present.read(columns, param.dtype, param.shape)
    return plain
