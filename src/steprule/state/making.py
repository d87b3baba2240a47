"""A parameter's state: made where it is missing, and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.formats import Format
from steprule.formats.choices import param_format, storing_of
from steprule.formats.floating import FLOATING, FloatingFormat
from steprule.formats.storage import ROUNDING_STEP, Storage, key_of, storage_of
from steprule.language.rule import Rule
from steprule.state.storing import (
    column_shape,
    columns_in,
    format_in,
    put_array,
    store_anew,
    store_param,
    wanted_format,
)


def scalar_dtype() -> torch.dtype:
    """Return the dtype of step counts and scalar slots, as torch chooses it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def ensure_state(
    rule: Rule,
    options: Mapping[str, Any],
    param: Tensor,
    state: MutableMapping[Tensor, dict[str, Any]],
    fresh: set[Tensor],
) -> Storage:
    """Give ``param`` the state that the rule keeps under these options, where it is missing.

    A step count that came as a number (from old checkpoints) is made a tensor, and what is stored
    in another format than asked for is stored anew. A parameter whose slots are made here joins
    ``fresh``: its next update is its first.

    Returns:
        How the parameter and its arrays are stored.
    """
    slots = {
        name: (slot, shape)
        for name, slot in rule.slots.items()
        if slot.is_present(options) and (shape := slot.shape_for(param.shape)) is not None
    }
    storing = storing_of(options, rule.options)
    of_param = param_format(storing, param)
    if not slots and not rule.counts_steps and isinstance(of_param, FloatingFormat):
        return storage_of((("param", of_param),), (0,))  # torch keeps no entry without state
    entry = state[param]
    formats: list[tuple[str, Format]] = [("param", store_param(entry, storing, param))]
    count_device = param.device if options.get("capturable") else torch.device("cpu")
    if rule.counts_steps:
        step = entry.get("step", 0.0)
        if rule.sparse == "only":
            entry["step"] = int(step)  # torch's SparseAdam counts in Python
        elif not isinstance(step, Tensor) or not step.is_floating_point():
            entry["step"] = torch.tensor(float(step), dtype=scalar_dtype(), device=count_device)
        elif step.device != count_device:
            entry["step"] = step.to(count_device)  # a count on the GPU would be waited for
    missing = [name for name in slots if not isinstance(entry.get(name), Tensor)]
    for name, (slot, shape) in slots.items():
        value = slot.initial_value(options) if name in missing else None
        if slot.is_scalar:
            if value is not None:
                dtype = torch.float64 if slot.is_float64 else scalar_dtype()
                entry[name] = torch.tensor(value, dtype=dtype, device=count_device)
            continue
        wanted = wanted_format(slot, options, storing, param)
        if value is None:
            wanted = store_anew(name, entry, wanted, param)
        else:
            wanted = wanted or FLOATING[param.dtype]
            put_array(name, entry, wanted, param, value, torch.Size(shape))
        formats.append((name, wanted))
    if missing and len(missing) == len(slots):
        fresh.add(param)
    return storage_of(tuple(formats), _numbers(rule, formats), _count_key(rule, formats, entry))


def _numbers(rule: Rule, formats: Sequence[tuple[str, Format]]) -> tuple[int, ...]:
    """Return what the random bits of each array know it by."""
    names = ("param", *rule.slots)
    return tuple(names.index(name) for name, _ in formats)


def _count_key(
    rule: Rule, formats: Sequence[tuple[str, Format]], entry: MutableMapping[str, Any]
) -> str | None:
    """Return the key of the step count that random bits need, which is made if it is missing."""
    if not any(storage.is_random for _, storage in formats):
        return None
    if rule.counts_steps:
        return "step"
    if not isinstance(entry.get(ROUNDING_STEP), Tensor):
        entry[ROUNDING_STEP] = torch.tensor(0.0, dtype=scalar_dtype())
    return ROUNDING_STEP


def check_state(rule: Rule, param: Tensor, state: Mapping[str, Any], label: str) -> None:
    """Refuse state that cannot be this parameter's.

    Raises:
        RuntimeError: naming the parameter and the entry.
    """
    for name in ("step", ROUNDING_STEP, *rule.slots):
        value = state.get(name)
        if not isinstance(value, Tensor):
            continue
        slot = rule.slots.get(name)
        if slot is None or slot.is_scalar:
            if value.numel() != 1:
                raise RuntimeError(_resized(name, value, param, label))
            continue
        _check_columns(name, state, torch.Size(slot.shape_for(param.shape) or ()), param, label)
    if any(str(key).startswith("param:") for key in state):
        _check_columns("param", {**state, "param": param}, param.shape, param, label)


def _check_columns(
    name: str, state: Mapping[str, Any], shape: torch.Size, param: Tensor, label: str
) -> None:
    """Refuse an array whose columns are not those of a format, or of another size."""
    try:
        storage = format_in(name, state)
        tensors = columns_in(name, state, storage)
    except KeyError:
        raise RuntimeError(
            f"state {name!r} of {label} is {state[name].dtype} and in no format that is known: it "
            "must be floating, or have its format's other columns beside it"
        ) from None
    for column, tensor in zip(storage.columns, tensors, strict=True):
        key = key_of(name, column.part)
        if tensor.shape != column_shape(column, shape):
            raise RuntimeError(_resized(key, tensor, param, label))
        if tensor.dtype is not column.dtype:
            raise RuntimeError(
                f"state {key!r} of {label} is {tensor.dtype}, in format {storage.name!r} it is "
                f"{column.dtype}"
            )


def _resized(name: str, value: Tensor, param: Tensor, label: str) -> str:
    return (
        f"state {name!r} of {label} has shape {tuple(value.shape)}, the parameter has "
        f"{tuple(param.shape)}: if the parameter was resized, resize its state too or "
        "delete it (del optimizer.state[param])"
    )


@contextlib.contextmanager
def unchanged_state(
    state: MutableMapping[Any, Any], fresh: set[Tensor], *, always: bool = False
) -> Iterator[None]:
    """Undo what is added to the state inside, if that raises or ``always``.

    Tensors that were there are not looked at: nothing is to be updated inside.
    """
    before = {key: dict(e) if isinstance(e, dict) else e for key, e in state.items()}
    fresh_before = set(fresh)
    try:
        yield
    except BaseException:
        always = True
        raise
    finally:
        if always:
            fresh &= fresh_before
            for key in [key for key in state if key not in before]:
                del state[key]
            for key, entry in before.items():
                if isinstance(entry, dict) and not _are_same(state[key], entry):
                    state[key].clear()
                    state[key].update(entry)


def _are_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in other)
