"""LBFGS's options: checked, and brought together from the parameter groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from steprule.optimizer.options import check_flag, check_has_value
from steprule.quasi_newton.backtracking import backtracking
from steprule.quasi_newton.bounds import checked_bounds
from steprule.quasi_newton.line_search import LineSearch
from steprule.quasi_newton.more_thuente import more_thuente
from steprule.quasi_newton.strong_wolfe import strong_wolfe
from steprule.schedules import checks

LINE_SEARCHES: dict[str | None, LineSearch | None] = {
    None: None,
    "strong_wolfe": strong_wolfe,
    "more_thuente": more_thuente,
    "backtracking": backtracking,
}
# These follow torch's numbers: its first step, its absolute test of curvature, no restarts.
TORCH_SEARCHES = (None, "strong_wolfe")
STORAGE = ("bfloat16", "float32", "float64")
# What belongs to the whole problem; lr and bounds may differ from group to group.
COMMON = (
    "max_iter",
    "max_eval",
    "tolerance_grad",
    "tolerance_change",
    "history_size",
    "history_dtype",
    "line_search_fn",
    "maximize",
    "strict_max_eval",
)
# Of these, those that are on or off; a group need not have them.
FLAGS = ("maximize", "strict_max_eval")


def dtype_name(dtype: torch.dtype | str | None) -> str | None:
    """Return a storage dtype by name (state dicts then hold plain text).

    Raises:
        ValueError: not one of these.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in STORAGE:
        raise ValueError(
            f"history_dtype must be one of {', '.join(STORAGE)} (float16 has too short a range for "
            f"the small steps near a minimum), got {dtype!r}"
        )
    return name


def default_max_eval(max_iter: float) -> float:
    """Five evaluations for four iterations, as in torch."""
    if not isinstance(max_iter, Real):  # refused by name when the group is checked
        return max_iter
    return max_iter if math.isinf(max_iter) else max_iter * 5 // 4


def check_group(group: Mapping[str, Any], where: str = "") -> None:
    """Check one group's options.

    Raises:
        ValueError: an option out of its range, by name, with the value and the range.
        TypeError: one of the wrong kind.
    """
    lr = group["lr"]
    if isinstance(lr, torch.Tensor) and lr.numel() != 1:
        raise ValueError(f"{where}Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
    check_has_value("lr", lr, where)
    number = checks.real_number(lr.detach() if isinstance(lr, torch.Tensor) else lr)
    if number is None:
        raise TypeError(f"{where}lr must be a number, got {type(lr).__name__} {lr!r}")
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{where}Invalid learning rate: {lr} (lr must be finite and at least 0)")
    _check_count(group, "max_iter", 0, where)
    _check_count(group, "max_eval", 0, where)
    _check_count(group, "history_size", 1, where)
    if not isinstance(group["history_size"], Integral):
        raise TypeError(f"{where}history_size must be an int, got {group['history_size']!r}")
    for name in ("tolerance_grad", "tolerance_change"):
        _check_tolerance(name, group[name], where)
    check_flag("strict_max_eval", group.get("strict_max_eval"), where)
    search = group["line_search_fn"]
    if search is not None and not isinstance(search, str):
        raise TypeError(f"{where}line_search_fn must be a name or None, got {search!r}")
    if group["line_search_fn"] not in LINE_SEARCHES:
        known = ", ".join(repr(name) for name in LINE_SEARCHES)
        raise ValueError(
            f"{where}line_search_fn must be one of {known}, got {group['line_search_fn']!r}"
        )
    checked_bounds(group.get("bounds"), where)
    dtype_name(group.get("history_dtype"))


def check_common(first: Mapping[str, Any], group: Mapping[str, Any], where: str = "") -> None:
    """Check that a group agrees with the first on what belongs to the whole problem.

    Raises:
        ValueError: naming the option.
    """
    for name in COMMON:
        ours, theirs = _common_value(group, name), _common_value(first, name)
        if ours != theirs:
            raise ValueError(
                f"{where}{name} must be the same in all groups of LBFGS (one problem, one search): "
                f"got {ours!r}, group 0 has {theirs!r}; only lr and bounds may differ"
            )


def _common_value(group: Mapping[str, Any], name: str) -> Any:
    value = group.get(name)
    if name == "history_dtype":
        return dtype_name(value)
    return bool(value) if name in FLAGS else value


def _check_tolerance(name: str, value: Any, where: str) -> None:
    number = checks.real_number(value)
    if number is None:
        raise TypeError(f"{where}{name} must be a number, got {type(value).__name__} {value!r}")
    if math.isnan(number):
        raise ValueError(f"{where}{name} must be a number, got {value}")


def _check_count(group: Mapping[str, Any], name: str, least: int, where: str) -> None:
    # torch's documentation gives max_iter * 1.25, a float, for the default of max_eval.
    value = group[name]
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{where}{name} must be an int, got {type(value).__name__} {value!r}")
    if not float(value) >= least:
        raise ValueError(f"{where}{name} must be at least {least}, got {value}")


def _lr(group: Mapping[str, Any]) -> float:
    """Return a group's lr; 0 for a group without values, so that it has no say in the largest."""
    return float(group["lr"]) if any(param.numel() for param in group["params"]) else 0.0


@dataclass(frozen=True)
class Options:
    """The options that hold for the whole problem, and each group's lr (0 if it is empty)."""

    max_iter: float
    max_eval: float
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    history_dtype: torch.dtype | None
    line_search_fn: str | None
    maximize: bool
    strict_max_eval: bool
    lrs: tuple[float, ...]

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]]) -> Options:
        """Read the groups, which a user or a scheduler may have changed since the last step.

        Raises:
            ValueError: groups that differ in what must be common, or a value out of range.
        """
        for k, group in enumerate(groups):
            check_group(group, f"group {k}: ")
        first = groups[0]
        for k, group in enumerate(groups):
            check_common(first, group, f"group {k}: ")
        dtype = dtype_name(first.get("history_dtype"))
        return cls(
            max_iter=first["max_iter"],
            max_eval=first["max_eval"],
            tolerance_grad=float(first["tolerance_grad"]),
            tolerance_change=float(first["tolerance_change"]),
            history_size=int(first["history_size"]),
            history_dtype=None if dtype is None else getattr(torch, dtype),
            line_search_fn=first["line_search_fn"],
            maximize=bool(first.get("maximize", False)),
            strict_max_eval=bool(first.get("strict_max_eval", False)),
            lrs=tuple(_lr(group) for group in groups),
        )

    @property
    def lr(self) -> float:
        """The first trial step: the largest lr of any group."""
        return max(self.lrs)

    @property
    def follows_torch(self) -> bool:
        """Whether torch's numbers are kept."""
        return self.line_search_fn in TORCH_SEARCHES

    @property
    def may_exceed(self) -> bool:
        """Whether the last move may take an evaluation more than ``max_eval``, as torch's does."""
        return self.follows_torch and not self.strict_max_eval
