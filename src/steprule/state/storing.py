"""A parameter's arrays in the formats that its group asks for: made, and stored anew."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_sharded, local_of, local_shape, wrapped
from steprule.formats import Column, Format
from steprule.formats.choices import StoringOptions, formats_by_column, param_format, slot_format
from steprule.formats.floating import FLOATING, FloatingFormat, compute_dtype, has_memory
from steprule.formats.storage import as_stored, key_of
from steprule.language.rule import Slot


def column_shape(column: Column, shape: torch.Size) -> torch.Size:
    """Return the shape of a column of an array of this shape.

    What neighbours share has an axis of its own in the place of the last one, or of all but the
    first, where these are whole numbers of neighbours: it can then be sharded as the array is.
    """
    if column.elements == 1:
        return shape
    for axes in (len(shape) - 1, 1):
        rest = shape[axes:].numel()
        if 0 < axes < len(shape) and rest % column.elements == 0:
            return torch.Size([*shape[:axes], rest // column.elements])
    return torch.Size([column.length(shape.numel())])


def has_parts(entry: Mapping[Any, Any]) -> bool:
    """Tell whether a state entry has more than plain tensors, which tell their format."""
    return any(":" in key for key in entry if isinstance(key, str))


def format_in(name: str, entry: Mapping[str, Any]) -> Format:
    """Return the format that an array has in a state entry, by its keys and dtype.

    Raises:
        KeyError: none that is known.
    """
    prefix = f"{name}:"
    for key in entry:
        if isinstance(key, str) and key.startswith(prefix):
            return formats_by_column()[key.removeprefix(prefix), entry[key].dtype]
    dtype = entry[name].dtype
    plain = FLOATING.get(dtype)
    return formats_by_column()["", dtype] if plain is None else plain


def columns_in(name: str, entry: Mapping[str, Any], storage: Format) -> list[Tensor]:
    """Return the tensors of a state entry that hold an array; of sharded ones what is here."""
    keys = [key_of(name, column.part) for column in storage.columns]
    return as_stored(storage, [local_of(entry[key]) for key in keys])


def column_problem(
    name: str,
    entry: Mapping[str, Any],
    shape: torch.Size,
    label: str,
    resized: str,
    param: Tensor,
) -> str | None:
    """Say why what a state entry has of an array can't be read; None if it can.

    Args:
        name: the array's.
        entry: the state entry.
        shape: the array's.
        label: the parameter's name in messages.
        resized: what is said of another shape, after which shape it is.
        param: the parameter.
    """
    try:
        storage = format_in(name, entry)
        columns = [entry[key_of(name, column.part)] for column in storage.columns]
    except (KeyError, AttributeError):
        kind = getattr(entry[name], "dtype", type(entry[name]).__name__)
        return (
            f"state {name!r} of {label} is {kind} and in no format that is known: it must be "
            "floating, or have its format's other columns beside it; a format of your own must be "
            "registered first (steprule.register_state_format)"
        )
    for column, tensor in zip(storage.columns, columns, strict=True):
        key = key_of(name, column.part)
        if not isinstance(tensor, Tensor):
            return f"state {key!r} of {label} is {tensor!r:.80}, it must be a tensor"
        problem = memory_problem(tensor, param)
        if problem is not None:
            return f"state {key!r} of {label} {problem}"
        # Shared items once had one axis always, which will do.
        is_flat = column.elements > 1 and tensor.shape == (column.length(shape.numel()),)
        if tensor.shape != column_shape(column, shape) and not is_flat:
            return f"state {key!r} of {label} has shape {tuple(tensor.shape)}{resized}"
        if tensor.is_complex() and not param.is_complex():
            return f"state {key!r} of {label} is {tensor.dtype}, the parameter is {param.dtype}"
        # A parameter's own dtype is the model's.
        if tensor.dtype is not column.dtype and key != "param":
            return (
                f"state {key!r} of {label} is {tensor.dtype}, in format {storage.name!r} it is "
                f"{column.dtype}"
            )
    return None


def memory_problem(tensor: Tensor, param: Tensor) -> str | None:
    """Say what state is that has no elements to be read; None if it has."""
    if tensor.is_meta and not param.is_meta:
        return "is on meta and has no numbers: load or make it on the parameter's device"
    if tensor.layout is not torch.strided:
        return f"is {tensor.layout}, it must be dense"
    if not has_memory(tensor):
        return "has no memory (its storage was freed)"
    return None


def number_problem(value: Any, param: Tensor) -> str | None:
    """Say why a value can't be a step count or a scalar of the state; None if it can."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            return f"has shape {tuple(value.shape)}, it must be one number"
        if value.is_complex():
            return f"is {value.dtype}, it must be one real number"
        return memory_problem(value, param)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return None
    return f"is {value!r:.80}, it must be one number"


def wanted_format(
    slot: Slot, options: Mapping[str, Any], storing: StoringOptions, param: Tensor
) -> Format | None:
    """Return the format that a slot is to have; None for whatever floating dtype it has."""
    return slot_format(
        storing,
        param,
        is_signed=slot.signed,
        is_precise=slot.is_precise(options),
        is_wide=slot.is_wide,
        is_average=slot.is_average,
    )


def put_array(
    name: str,
    entry: MutableMapping[str, Any],
    storage: Format,
    param: Tensor,
    value: Any,
    shape: torch.Size,
) -> None:
    """Store a number, or a tensor of real numbers, as an array of a parameter's state.

    Args:
        name: the array's.
        entry: the state entry.
        storage: the format.
        param: the parameter.
        value: the number; or the numbers, of a sharded parameter those that are here.
        shape: the array's, of a sharded parameter the whole one's.
    """
    columns = _zeroed(storage, param, shape)
    if isinstance(value, Tensor):
        storage.write(as_stored(storage, columns), value)
    elif value:
        as_pairs = (2,) if columns[0].is_complex() else ()
        compute = compute_dtype(param)
        here = (*local_shape(shape, param), *as_pairs)
        full = torch.full(here, value, dtype=compute, device=param.device)
        storage.write(as_stored(storage, columns), full)
    remove_parts(name, entry)
    for column, tensor in zip(storage.columns, columns, strict=True):
        entry[key_of(name, column.part)] = _whole(tensor, column, param, shape)


def _zeroed(storage: Format, param: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return zeros for the columns of an array: laid out as the parameter if they can be.

    Of a sharded parameter, those that are here.
    """
    is_alike = len(storage.columns) == 1 and shape == param.shape
    if is_sharded(param):
        param, shape = local_of(param), local_shape(shape, param)
    return [
        torch.zeros_like(param, dtype=column.dtype, requires_grad=False)
        if is_alike
        else param.new_zeros(column_shape(column, shape), dtype=column.dtype)
        for column in storage.columns
    ]


def _whole(tensor: Tensor, column: Column, param: Tensor, shape: torch.Size) -> Tensor:
    """Return a column as the state has it: sharded as the parameter is."""
    if not is_sharded(param):
        return tensor
    if column.elements == 1 and shape == param.shape:
        return wrapped(tensor, param)
    return wrapped(tensor, param, column_shape(column, shape))


def remove_parts(name: str, entry: MutableMapping[str, Any]) -> None:
    """Remove what a format keeps beside an array."""
    prefix = f"{name}:"
    for key in [key for key in entry if isinstance(key, str) and key.startswith(prefix)]:
        del entry[key]


def store_anew(
    name: str, entry: MutableMapping[str, Any], wanted: Format | None, param: Tensor
) -> Format:
    """Store an array in the wanted format, if it is in another one.

    Args:
        name: the array's.
        entry: the parameter's state.
        wanted: the format; None for whatever floating dtype it has.
        param: the parameter.

    Returns:
        The format that it has then.
    """
    present = format_in(name, entry)
    is_plain = isinstance(present, FloatingFormat)
    if wanted is None and is_plain:
        return FLOATING[entry[name].dtype]
    target = FLOATING[param.dtype] if wanted is None else wanted
    if present.columns != target.columns:
        columns = columns_in(name, entry, present)
        shape = entry[name].shape if is_plain else param.shape
        value = present.read(columns, compute_dtype(param), local_shape(shape, param))
        put_array(name, entry, target, param, value, shape)
    return target


def store_param(entry: MutableMapping[str, Any], storing: StoringOptions, param: Tensor) -> Format:
    """Keep in a parameter's state what its format has beside it; zeros where that is missing.

    What another format has left there is let go of: the parameter is then what it was rounded to.

    Returns:
        The parameter's format.
    """
    wanted = param_format(storing, param)
    parts = {key_of("param", column.part): column.dtype for column in wanted.columns[1:]}
    is_there = all(getattr(entry.get(key), "dtype", None) is kind for key, kind in parts.items())
    if not parts or not is_there:
        remove_parts("param", entry)
        for column in wanted.columns[1:]:
            zeros = torch.zeros_like(local_of(param), dtype=column.dtype, requires_grad=False)
            entry[key_of("param", column.part)] = _whole(zeros, column, param, param.shape)
    return wanted
