"""A parameter's state: made where it is missing, and checked."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_sharded, local_of, spreads_alike
from steprule.formats import Format
from steprule.formats.choices import StoringOptions, param_format
from steprule.formats.floating import FLOATING, FloatingFormat, compute_dtype
from steprule.formats.storage import ROUNDING_STEP, Storage, storage_of
from steprule.language.rule import Rule, Slot
from steprule.state.storing import (
    column_problem,
    columns_in,
    has_parts,
    number_problem,
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
    storing: StoringOptions,
    *,
    counts_on_device: bool,
) -> Storage:
    """Give ``param`` the state that the rule keeps under these options, where it is missing.

    A step count that came as a number (from old checkpoints) is made a tensor, and what is stored
    in another format than asked for is stored anew. A parameter whose slots are made here joins
    ``fresh``: its next update is its first. Step counts and scalar slots are on the host, unless
    ``counts_on_device``.

    Returns:
        How the parameter and its arrays are stored.
    """
    slots = _slots_of(rule, options, param)
    of_param = param_format(storing, param)
    if not slots and not rule.counts_steps and isinstance(of_param, FloatingFormat):
        if param in state:
            store_param(state[param], storing, param)
        return storage_of((("param", of_param),), (0,))  # torch keeps no entry without state
    entry = state[param]
    is_plain = storing.is_default and not has_parts(entry)
    if not is_plain:
        store_param(entry, storing, param)
    formats: list[tuple[str, Format]] = [("param", of_param)]
    count_device = param.device if counts_on_device else torch.device("cpu")
    if rule.sparse == "only":
        entry["step"] = int(entry.get("step", 0))  # torch's SparseAdam counts in Python
    elif rule.counts_steps:
        _make_count("step", entry, count_device)
    missing = [name for name in slots if not isinstance(entry.get(name), Tensor)]
    for name, (slot, shape) in slots.items():
        value = _starts_at(slot, options, entry, of_param, param) if name in missing else None
        if slot.is_scalar:
            _make_scalar(name, slot, entry, value, count_device)
            continue
        if slot.is_square:
            formats.append((name, _make_square(name, entry, value, shape, param)))
            continue
        if is_plain and value is None and not slot.is_wide:
            formats.append((name, FLOATING[entry[name].dtype]))
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
    names = tuple(name for name, _ in formats)
    count = _count_key(rule, formats, entry, count_device)
    return storage_of(tuple(formats), _numbers(rule, names), count)


def _slots_of(
    rule: Rule, options: Mapping[str, Any], param: Tensor
) -> dict[str, tuple[Slot, tuple[int, ...]]]:
    """Return the slots that a parameter has under these options, and their shapes."""
    return {
        name: (slot, shape)
        for name, slot in rule.slots.items()
        if slot.is_present(options) and (shape := slot.shape_for(param.shape, options)) is not None
    }


def _starts_at(
    slot: Slot,
    options: Mapping[str, Any],
    entry: Mapping[str, Any],
    of_param: Format,
    param: Tensor,
) -> Any:
    """Return what a slot holds before the first step: a number, or those of the parameter."""
    if not slot.is_average:
        return slot.initial_value(options)
    columns = columns_in("param", {**entry, "param": param.detach()}, of_param)
    return of_param.read(columns, compute_dtype(param), local_of(param).shape)


@functools.cache
def _numbers(rule: Rule, names: tuple[str, ...]) -> tuple[int, ...]:
    """Return what the random bits of each array know it by."""
    all_names = ("param", *rule.slots)
    return tuple(map(all_names.index, names))


def _count_key(
    rule: Rule,
    formats: Sequence[tuple[str, Format]],
    entry: MutableMapping[str, Any],
    device: torch.device,
) -> str | None:
    """Return the key of the step count that random bits need, which is made if it is missing."""
    if not any(storage.is_random for _, storage in formats):
        return None
    if rule.counts_steps:
        return "step"
    _make_count(ROUNDING_STEP, entry, device)
    return ROUNDING_STEP


def _make_scalar(
    name: str,
    slot: Slot,
    entry: MutableMapping[str, Any],
    value: float | None,
    device: torch.device,
) -> None:
    """Have a slot of one number on this device: at a value, or (None) the one that is there."""
    if value is not None:
        dtype = torch.float64 if slot.is_float64 else scalar_dtype()
        entry[name] = torch.tensor(value, dtype=dtype, device=device)
    elif entry[name].device != device:
        entry[name] = entry[name].to(device)


def _make_square(
    name: str,
    entry: MutableMapping[str, Any],
    value: float | None,
    shape: Sequence[int],
    param: Tensor,
) -> Format:
    """Have a square matrix of a parameter's side in full precision, which every rank has whole."""
    dtype, device = compute_dtype(param), local_of(param).device
    if value is not None:
        entry[name] = torch.eye(shape[0], dtype=dtype, device=device).mul_(value)
    elif entry[name].dtype is not dtype or entry[name].device != device:
        entry[name] = entry[name].to(dtype=dtype, device=device)
    return FLOATING[dtype]


def _make_count(key: str, entry: MutableMapping[str, Any], device: torch.device) -> None:
    """Have a count of steps in a state entry: a floating tensor of one number, on this device."""
    count = entry.get(key, 0.0)
    if not isinstance(count, Tensor) or not count.is_floating_point():
        entry[key] = torch.tensor(float(count), dtype=scalar_dtype(), device=device)
    elif count.device != device:
        entry[key] = count.to(device)  # a count on the GPU would be waited for


def check_state(rule: Rule, param: Tensor, state: Mapping[str, Any], label: str) -> None:
    """Refuse state that cannot be this parameter's.

    Raises:
        RuntimeError: naming the parameter and the entry.
    """
    is_plain = not has_parts(state)
    for name in ("step", ROUNDING_STEP, *rule.slots):
        value = state.get(name)
        if value is None:
            continue
        slot = rule.slots.get(name)
        if slot is None or slot.is_scalar:
            problem = number_problem(value, param)
            if problem is not None:
                resized = _resized(param) if isinstance(value, Tensor) and value.dim() else ""
                raise RuntimeError(f"state {name!r} of {label} {problem}{resized}")
            continue
        expected = torch.Size(slot.shape_for(param.shape) or ())
        _check_array(name, state, expected, param, label, is_whole=slot.is_square)
    if not is_plain and any(str(key).startswith("param:") for key in state):
        _check_array("param", {**state, "param": param}, param.shape, param, label)


def _check_array(
    name: str,
    state: Mapping[str, Any],
    shape: torch.Size,
    param: Tensor,
    label: str,
    *,
    is_whole: bool = False,
) -> None:
    problem = column_problem(name, state, shape, label, _resized(param), param)
    if problem is None and is_sharded(param) and not is_whole:
        problem = _spread_problem(name, state, param, label)
    if problem is not None:
        raise RuntimeError(problem)


def _spread_problem(name: str, state: Mapping[str, Any], param: Tensor, label: str) -> str | None:
    """Say what array of a sharded parameter's state is not sharded as the parameter is."""
    for key, value in state.items():
        of_array = str(key).partition(":")[0] == name and key != "param"
        if of_array and isinstance(value, Tensor) and not spreads_alike(value, param):
            return (
                f"state {key!r} of {label} is not sharded as the parameter is: load it by "
                "load_state_dict(), or delete it (del optimizer.state[param])"
            )
    return None


def _resized(param: Tensor) -> str:
    return (
        f", the parameter has {tuple(param.shape)}: if the parameter was resized, resize its state "
        "too or delete it (del optimizer.state[param])"
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
