"""A parameter's state: made where it is missing, and checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from steprule.formats.floating import real_view
from steprule.language.rule import Rule


def scalar_dtype() -> torch.dtype:
    """Return the dtype of step counts and scalar slots, as torch chooses it."""
    return torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32


def ensure_state(
    rule: Rule,
    options: Mapping[str, Any],
    param: Tensor,
    state: MutableMapping[Tensor, dict[str, Any]],
    fresh: set[Tensor],
) -> None:
    """Give ``param`` the state that the rule keeps under these options, where it is missing.

    A step count that came as a number (from old checkpoints) is made a tensor. A parameter whose
    slots are made here joins ``fresh``: its next update is its first.
    """
    shapes = {
        name: shape
        for name, slot in rule.slots.items()
        if slot.is_present(options) and (shape := slot.shape_for(param.shape)) is not None
    }
    names = list(shapes)
    if not names and not rule.counts_steps:
        return  # torch keeps no entry for a parameter without state
    entry = state[param]
    count_device = param.device if options.get("capturable") else torch.device("cpu")
    if rule.counts_steps:
        step = entry.get("step", 0.0)
        if rule.sparse == "only":
            entry["step"] = int(step)  # torch's SparseAdam counts in Python
        elif not isinstance(step, Tensor) or not step.is_floating_point():
            entry["step"] = torch.tensor(float(step), dtype=scalar_dtype(), device=count_device)
        elif step.device != count_device:
            entry["step"] = step.to(count_device)  # a count on the GPU would be waited for
    missing = [name for name in names if not isinstance(entry.get(name), Tensor)]
    for name in missing:
        slot = rule.slots[name]
        value = slot.initial_value(options)
        if slot.is_scalar:
            dtype = torch.float64 if slot.is_float64 else scalar_dtype()
            entry[name] = torch.tensor(value, dtype=dtype, device=count_device)
        else:
            whole = shapes[name] == param.shape
            entry[name] = torch.zeros_like(param) if whole else param.new_zeros(shapes[name])
            if value:
                real_view(entry[name]).fill_(value)
    if missing and len(missing) == len(names):
        fresh.add(param)


def check_state(rule: Rule, param: Tensor, state: Mapping[str, Any], label: str) -> None:
    """Refuse state that cannot be this parameter's.

    Raises:
        RuntimeError: naming the parameter and the entry.
    """
    for name in ("step", *rule.slots):
        value = state.get(name)
        if not isinstance(value, Tensor):
            continue
        slot = rule.slots.get(name)
        is_scalar = slot is None or slot.is_scalar
        expected = None if slot is None or is_scalar else slot.shape_for(param.shape)
        if value.numel() != 1 if is_scalar else value.shape != expected:
            raise RuntimeError(
                f"state {name!r} of {label} has shape {tuple(value.shape)}, the parameter has "
                f"{tuple(param.shape)}: if the parameter was resized, resize its state too or "
                "delete it (del optimizer.state[param])"
            )
        if not (is_scalar or value.is_floating_point() or value.is_complex()):
            raise RuntimeError(f"state {name!r} of {label} is {value.dtype}: it must be floating")


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
