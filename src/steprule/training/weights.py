"""A model's weights: what of them fits, and how they are put in force."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from steprule.distributed.placing import look_at, placed
from steprule.distributed.shards import is_sharded
from steprule.state.copying import own_copy
from steprule.state.pairing import LoadReport


@dataclass(frozen=True)
class Weights:
    """What is to be loaded into a model.

    Attributes:
        state: its state dict.
        report: what does not fit.
        is_strict: whether the model is to refuse what it does not know: it has functions of its
            own that rename what is loaded, so that only it can tell.
    """

    state: Mapping[str, Any]
    report: LoadReport
    is_strict: bool = False


def checked_weights(
    model: Any,
    saved: Mapping[str, Any],
    versions: Any,
    label: str,
    strict: bool,
    new_name: Callable[[str], str] | None,
) -> Weights:
    """Return what can be loaded into a model, and what can't.

    Args:
        model: the model.
        saved: its state dict.
        versions: of its modules, as torch keeps them beside a state dict.
        label: its name in messages.
        strict: whether what can't be loaded is an error.
        new_name: what is called otherwise now.

    Raises:
        ValueError: there is something that can't be loaded, and ``strict``; or two have one name.
        TypeError: ``new_name`` gives something that is no name.
    """
    state = _renamed(saved, new_name, label)
    own = model.state_dict()
    reshaped = {
        key: f"{key!r} (saved {tuple(state[key].shape)}, now {tuple(value.shape)})"
        for key, value in own.items()
        if isinstance(value, Tensor)
        and not is_lazy(value)
        and isinstance(state.get(key), Tensor)
        and value.shape != state[key].shape
    }
    renames_itself = strict and _has_hooks(model) and not reshaped
    report = LoadReport(
        missing=tuple(repr(key) for key in own if key not in state),
        unexpected=tuple(repr(key) for key in state if key not in own),
        reshaped=tuple(reshaped.values()),
    )
    if renames_itself:
        report = LoadReport()
    elif strict and not report.is_exact:
        raise ValueError(
            f"{label}: the checkpoint is of another model.\n{report}\nSay rename={{...}} for what "
            "has another name now, or strict=False to load what fits"
        )
    fits = OrderedDict(
        (key, _lasting(model, own.get(key), value))
        for key, value in state.items()
        if renames_itself or (key in own and key not in reshaped)
    )
    if isinstance(versions, dict):
        fits._metadata = versions  # type: ignore[attr-defined]
    return Weights(fits, report, renames_itself)


def load_weights(model: Any, weights: Weights) -> None:
    """Load what was checked; a model that refuses it nevertheless is put back.

    Raises:
        Exception: what the model itself raises.
    """
    if not weights.is_strict:
        model.load_state_dict(weights.state, strict=False)
        return
    present = model.state_dict().items()
    before = {k: own_copy(x) for k, x in present if not (isinstance(x, Tensor) and is_lazy(x))}
    try:
        model.load_state_dict(weights.state, strict=True)
    except BaseException:
        model.load_state_dict(before, strict=False)
        raise


def _renamed(
    saved: Mapping[str, Any], new_name: Callable[[str], str] | None, label: str
) -> dict[str, Any]:
    if new_name is None:
        return dict(saved)
    names = [new_name(key) for key in saved]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"rename must return strings: names in {label}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(
            f"rename: several saved entries of {label} became {', '.join(map(repr, twice))}"
        )
    return dict(zip(names, saved.values(), strict=True))


def _has_hooks(model: Any) -> bool:
    """Tell whether any module changes what it is given to load."""
    return isinstance(model, nn.Module) and any(
        module._load_state_dict_pre_hooks for module in model.modules()
    )


def _lasting(model: Any, own: Any, value: Any) -> Any:
    """Return a value that may be kept: a copy, unless it is copied into a tensor that is there.

    What is mapped from a file must not outlive it.
    """
    is_plain = getattr(type(model), "load_state_dict", None) is nn.Module.load_state_dict
    if isinstance(value, Tensor) and isinstance(own, Tensor) and is_sharded(own):
        return placed(value, own)
    is_copied = isinstance(own, Tensor) and isinstance(value, Tensor) and not is_lazy(own)
    if not (is_plain and is_copied):
        return own_copy(value)
    look_at(value, own)
    return value
