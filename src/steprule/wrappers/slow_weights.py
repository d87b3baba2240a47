"""Lookahead's slow weights out of a state dict, checked before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from steprule.formats.floating import FLOATING, wide_dtype
from steprule.state.copying import laid_out
from steprule.state.labels import label_of
from steprule.state.load_plan import check_form
from steprule.state.pairing import NOT_SAVED, Rename, paired
from steprule.state.storing import memory_problem


def loaded_slow_weights(
    saved: Any,
    groups: list[dict[str, Any]],
    state_dict: Mapping[str, Any],
    *,
    strict: bool = True,
    rename: Rename | None = None,
    **_: Any,
) -> dict[Tensor, Tensor]:
    """Return copies of saved slow weights by their parameters, where and as wide as these are.

    Args:
        saved: by the keys that parameters have in the state dict.
        groups: the optimizer's.
        state_dict: which has them.
        strict: refuse those of another shape, which are left out otherwise.
        rename: what saved parameters are called now.

    Raises:
        TypeError, ValueError: not slow weights, or not of these parameters, as ``load_state_dict``.
    """
    if not isinstance(saved, Mapping):
        raise TypeError(f"loaded slow weights must be a dict by parameter, got {saved!r:.80}")
    if not saved:
        return {}
    check_form(state_dict)
    theirs = state_dict["param_groups"]
    unknown = [key for key in saved if not any(key in group["params"] for group in theirs)]
    if unknown:
        raise ValueError(
            f"loaded slow weights: {unknown[0]!r} is no parameter of the state dict's groups"
        )
    made = {}
    pairing = paired(groups, theirs, strict=strict, rename=rename)
    for i, (group, keys) in enumerate(zip(groups, pairing.keys, strict=True)):
        for position, (param, key) in enumerate(zip(group["params"], keys, strict=True)):
            if key is NOT_SAVED or key not in saved:
                continue
            problem = _problem(saved[key], param)
            if problem is None:
                made[param] = laid_out(saved[key], param, wide_dtype(param), param.device)
            elif strict:
                label = label_of(group, i, position)
                raise ValueError(f"loaded slow weights of {label}: {problem}")
    return made


def _problem(value: Any, param: Tensor) -> str | None:
    """Say why something can't be a parameter's slow weights; None if it can."""
    if not isinstance(value, Tensor):
        return f"{value!r:.80} is no tensor"
    problem = memory_problem(value, param)
    if problem is not None:
        return f"what was saved {problem}"
    if value.shape != param.shape:
        return f"saved with shape {tuple(value.shape)}, the parameter has {tuple(param.shape)}"
    if value.dtype not in FLOATING or value.is_complex() != param.is_complex():
        return f"saved as {value.dtype}, the parameter is {param.dtype}"
    return None
