"""The options that say how state and parameters are stored, and the formats that they mean."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor, is_sharded
from steprule.formats import Column, Format
from steprule.formats.floating import FLOATING, compute_dtype, wide_dtype
from steprule.formats.kahan import KahanFormat
from steprule.formats.mini_floats import MiniFloat
from steprule.formats.split import SplitFormat
from steprule.formats.stochastic import StochasticFloat

ROUNDINGS = ("nearest", "stochastic", "kahan", "split", "split24")
#: The dtypes whose parameters can be rounded otherwise than to nearest.
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class StoringOptions:
    """How a group stores its state and its parameters: options of every optimizer.

    Attributes:
        state_format: of the state: ``"param"``, the parameter's own dtype, or the name of a format.
        param_rounding: of parameters of 16 bits.
        state_format_min_size: state of fewer elements is kept in full precision.
        rounding_seed: what random bits depend on beside the parameter, the step and the element.
        ema_format: of the running average of parameters; None where none is kept.
    """

    state_format: str = "param"
    param_rounding: str = "nearest"
    state_format_min_size: int = 4096
    rounding_seed: int = 0
    ema_format: str | None = None

    @property
    def is_default(self) -> bool:
        """Whether all is stored as torch does."""
        return self.is_plain and self.ema_format is None

    @property
    def is_plain(self) -> bool:
        """Whether parameters and state are stored as torch does; averages aside."""
        return (self.state_format, self.param_rounding) == ("param", "nearest")


#: Each of these options and its default.
STORING: Mapping[str, Any] = {
    **{field.name: field.default for field in fields(StoringOptions)},
    "ema_format": "float32",
}
#: The option by which running averages are kept, and their default: none.
AVERAGING: Mapping[str, Any] = {"ema_decay": None}


@dataclass(frozen=True)
class StateFormat:
    """What a name given as ``state_format`` means.

    Attributes:
        signed: the format of slots that may be negative.
        unsigned: the format of those that are not.
    """

    signed: Format
    unsigned: Format


_FLOAT32 = FLOATING[torch.float32]
_BFLOAT16 = StochasticFloat(torch.bfloat16)
_STATE_FORMATS: dict[str, StateFormat] = {
    "float32": StateFormat(_FLOAT32, _FLOAT32),
    "bfloat16": StateFormat(_BFLOAT16, _BFLOAT16),
    "int8": StateFormat(MiniFloat(8, 3, True), MiniFloat(8, 3, False)),
    "int4": StateFormat(MiniFloat(4, 0, True), MiniFloat(4, 0, False)),
}


def register_state_format(name: str, signed: Format, unsigned: Format | None = None) -> None:
    """Let ``state_format=name`` be said of every optimizer.

    What is stored must tell its format: by the name of a column beside the array's own, or by a
    dtype that is not floating. The same must be registered before a state dict is loaded.

    Args:
        name: a word that is not taken.
        signed: how slots that may be negative are stored.
        unsigned: how those are that are never negative; as the others by default.

    Raises:
        ValueError: there is such a format, or one with the same columns; or its columns don't tell
            what it is.
        TypeError: it is no format, or has no hash (a dataclass needs ``frozen=True``); or the name
            is no string.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    for argument, each in (("signed", signed), ("unsigned", unsigned)):
        columns = getattr(each, "columns", None)
        is_format = isinstance(columns, tuple) and all(isinstance(x, Column) for x in columns)
        if not (each is None and argument == "unsigned") and not (is_format and columns):
            raise TypeError(
                f"state format {name!r}: {argument} must be a format (steprule.formats.Format), "
                f"got {each!r:.80}"
            )
    found = StateFormat(signed, unsigned or signed)
    known = formats_by_column()
    for each in (found.signed, found.unsigned):
        part, dtype = column_that_tells(each)
        if not part and dtype in FLOATING:
            raise ValueError(
                f"state format {name!r}: a lone column of {dtype} can't be told from plain numbers"
            )
        hash(each)  # formats are compared and kept
    if found.signed != found.unsigned and column_that_tells(found.signed) == column_that_tells(
        found.unsigned
    ):
        raise ValueError(f"state format {name!r}: signed and unsigned slots have the same columns")
    if name in state_format_names() or any(
        column_that_tells(x) in known for x in (found.signed, found.unsigned)
    ):
        raise ValueError(f"state format {name!r} is known already, or one of its columns is")
    _STATE_FORMATS[name] = found
    formats_by_column.cache_clear()


def state_format_names() -> tuple[str, ...]:
    """Return what may be given as ``state_format``."""
    return ("param", *_STATE_FORMATS)


def column_that_tells(storage: Format) -> tuple[str, torch.dtype]:
    """Return the part and dtype of the column by which a format is known in a state dict."""
    column = storage.columns[-1]
    return column.part, column.dtype


@functools.cache
def formats_by_column() -> Mapping[tuple[str, torch.dtype], Format]:
    """Return all formats that are not plain numbers by the column that tells them."""
    found: list[Format] = [
        SplitFormat(16),
        SplitFormat(8),
        *(KahanFormat(dtype) for dtype in HALF),
        *(x for both in _STATE_FORMATS.values() for x in (both.signed, both.unsigned)),
    ]
    by_column = {column_that_tells(storage): storage for storage in found}
    return {key: x for key, x in by_column.items() if key[0] or key[1] not in FLOATING}


def kept_storing(
    group: Mapping[str, Any], own: Collection[str]
) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what loading a state dict leaves as it is in a group: how things are stored.

    That is a matter of the memory that there is now, not of the run that was saved; the seed of
    random bits is one of the run.

    Returns:
        The options that the group has, and the names of those that it must not get.
    """
    names = [name for name in STORING if name != "rounding_seed" and name not in own]
    kept = {name: group[name] for name in names if name in group}
    return kept, frozenset(names) - kept.keys()


def storing_of(options: Mapping[str, Any], own: Collection[str] = ()) -> StoringOptions:
    """Return how a group with these options stores what it has.

    Args:
        options: the group.
        own: options that the rule itself has: one of such a name is not meant.
    """
    found = {k: v if k in own else options.get(k, v) for k, v in STORING.items()}
    if options.get("ema_decay") is None:
        found["ema_format"] = None
    return StoringOptions(**found)


def check_storing(storing: StoringOptions, options: Mapping[str, Any], where: str) -> None:
    """Check the options themselves, and with ``differentiable``.

    Raises:
        ValueError: a name that is none, or a combination that is not possible.
        TypeError: a number that is no integer.
    """
    names = state_format_names()
    for option, word, known in (
        ("state_format", storing.state_format, names),
        ("param_rounding", storing.param_rounding, ROUNDINGS),
        ("ema_format", options.get("ema_format", STORING["ema_format"]), names),
    ):
        if word not in known:
            words = ", ".join(map(repr, known))
            raise ValueError(f"{where}{option} must be one of {words}, got {word!r}")
    for name in ("state_format_min_size", "rounding_seed"):
        number = getattr(storing, name)
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{where}{name} must be an integer, got {number!r}")
    both = (storing.state_format, storing.ema_format)
    is_coded = any(word not in (None, "param", "float32") for word in both)
    if options.get("differentiable") and (is_coded or storing.param_rounding != "nearest"):
        average = "" if storing.ema_format is None else f", ema_format {storing.ema_format!r}"
        raise ValueError(
            f"{where}differentiable=True needs state that autograd can see into: state_format "
            "'param' or 'float32' and param_rounding 'nearest', got "
            f"{storing.state_format!r} and {storing.param_rounding!r}{average}"
        )


def check_param(storing: StoringOptions, param: Tensor, label: str) -> None:
    """Refuse a parameter that can't be stored so, or have such state.

    Raises:
        ValueError: naming it, and what it can have.
    """
    if is_dtensor(param) and not is_sharded(param) and not storing.is_plain:
        raise ValueError(
            f"state_format={storing.state_format!r} and param_rounding={storing.param_rounding!r} "
            f"need plain numbers, but what is here of {label} is of a class of its own, or still "
            "to be added up over ranks: take 'param' and 'nearest'"
        )
    for name in ("state_format", "ema_format"):
        word = getattr(storing, name)
        state = None if word is None else _STATE_FORMATS.get(word)
        if param.is_complex() and state is not None and state.signed != _FLOAT32:
            raise ValueError(
                f"{name}={word!r} is for real numbers, but {label} is {param.dtype}: put it in a "
                f"group with {name} 'param' or 'float32'"
            )
    if param.dtype is torch.float16 and storing.param_rounding in ("split", "split24"):
        raise ValueError(
            f"param_rounding={storing.param_rounding!r} splits float32 numbers into bfloat16 and a "
            f"rest, but {label} is float16: take 'kahan' or 'stochastic' for it, or bfloat16"
        )


def param_format(storing: StoringOptions, param: Tensor) -> Format:
    """Return the format of a parameter."""
    rounding, dtype = storing.param_rounding, param.dtype
    if dtype in HALF:
        if rounding == "stochastic":
            return StochasticFloat(dtype)
        if rounding == "kahan":
            return KahanFormat(dtype)
        if rounding != "nearest":
            return SplitFormat(16 if rounding == "split" else 8)
    return FLOATING[dtype]


def slot_format(
    storing: StoringOptions,
    param: Tensor,
    *,
    is_signed: bool,
    is_precise: bool,
    is_wide: bool = False,
    is_average: bool = False,
) -> Format | None:
    """Return the format of an array slot; None for whatever floating dtype it has.

    Args:
        storing: the group's options.
        param: the parameter.
        is_signed: whether the slot may be negative.
        is_precise: whether it must be kept in full precision.
        is_wide: whether it is to be kept so where nothing is asked for, too.
        is_average: whether it is the parameter's running average.
    """
    word = storing.ema_format if is_average else storing.state_format
    state = None if word is None else _STATE_FORMATS.get(word)
    if state is None:
        return FLOATING[wide_dtype(param)] if is_wide else None
    if param.is_complex():
        return FLOATING[wide_dtype(param)]
    is_small = param.numel() < storing.state_format_min_size
    if is_precise or is_small or (is_average and word == "float32"):
        return FLOATING[compute_dtype(param)]
    chosen = state.signed if is_signed else state.unsigned
    return chosen if _can_be_sharded(chosen, param) else FLOATING[compute_dtype(param)]


def _can_be_sharded(storage: Format, param: Tensor) -> bool:
    """Tell whether a format can store what belongs to a parameter: shards are whole blocks.

    So they are, for any number of ranks, where a parameter is sharded along its first dimensions
    and what the others have is whole blocks.
    """
    most = max(column.elements for column in storage.columns)
    if most == 1 or not is_sharded(param):
        return True
    last = param.ndim - 1
    cuts = {dim for p in param.placements if isinstance(dim := getattr(p, "dim", None), int)}
    if not cuts:
        return True
    if param.ndim > 1 and cuts <= {0} and param.shape[1:].numel() % most == 0:
        return True
    ways = 1
    for axis, placement in enumerate(param.placements):
        ways *= param.device_mesh.size(axis) if getattr(placement, "dim", None) == last else 1
    return param.ndim > 1 and param.shape[last] % (ways * most) == 0
