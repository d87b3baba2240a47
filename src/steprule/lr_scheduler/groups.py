"""Reading and writing what the optimizer's groups hold: numbers, or 0-dim tensors."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from steprule.schedules import checks

Rate = float | Tensor
_PLAIN = {float, int}


def check_optimizer(optimizer: Any) -> None:
    """Refuse anything but an optimizer whose lr nothing else drives, with the argument's name."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: {type(optimizer).__name__} is not an Optimizer")
    for index, group in enumerate(optimizer.param_groups):
        if "lr" in group.get("schedules", ()):
            raise ValueError(
                f"optimizer: the lr of group {index} follows {group['schedules']['lr']!r} already, "
                "and a scheduler would change it as well: give the optimizer a number for lr"
            )


@contextlib.contextmanager
def unchanged(optimizer: Optimizer) -> Iterator[None]:
    """Put an optimizer's groups back as they were, if what is done inside raises."""
    before = [dict(group) for group in optimizer.param_groups]
    numbers = [
        {key: value.detach().clone() for key, value in group.items() if isinstance(value, Tensor)}
        for group in before
    ]
    try:
        yield
    except BaseException:
        for group, was, tensors in zip(optimizer.param_groups, before, numbers, strict=False):
            group.clear()
            group.update(was)
            with torch.no_grad():
                for key, number in tensors.items():
                    group[key].copy_(number)
        raise


def check_verbose(verbose: Any) -> None:
    """Refuse what says neither whether to print lines nor to whom.

    Raises:
        TypeError: naming the argument.
    """
    is_known = verbose is None or (isinstance(verbose, str) and verbose == "deprecated")
    is_known = is_known or checks.is_switch(verbose)
    if not is_known and not callable(verbose):
        raise TypeError(
            f"verbose must be True, False or a function that gets each line, got {verbose!r}"
        )


def copied(value: Any) -> Any:
    """Return a copy of `value` that shares no list, dict or tensor with it."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Counter):
        return Counter(value)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(value if all_plain(value) else map(copied, value))
    return value


def all_plain(values: Sequence[Any]) -> bool:
    """Tell whether all are Python numbers, the fast case."""
    return {*map(type, values)} <= _PLAIN


def number(value: Any) -> Any:
    """Return the value as a float; None stays None."""
    return None if value is None else float(value)


def floats(values: Sequence[Any]) -> list[float]:
    """Return the values as floats; the list itself when nothing has to be converted.

    None stays None: an optimizer that finds its own lr has it in its groups, and a schedule that
    does not compute with it leaves it there.
    """
    if isinstance(values, list) and all_plain(values):
        return values
    return [number(value) for value in values]


def say_which_is_none(
    name: str, optimizer: Optimizer, keys: Sequence[str] = ("lr", "initial_lr")
) -> None:
    """Raise, by the group's number, when a group holds None where `name` computes with a number.

    Raises:
        TypeError: one of `keys` is None in a group.
    """
    for index, group in enumerate(optimizer.param_groups):
        for key in keys:
            if group.get(key, 0.0) is None:
                raise TypeError(
                    f"{key} of group {index} is None, and {name} computes with it: give the group "
                    "a number, or use a scheduler that sets the lr itself, such as OneCycleLR"
                )


def per_group(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """One value a group: `value` itself for each, or the list given, which must fit.

    Raises:
        ValueError: a list that has not as many entries as the optimizer has groups.
    """
    count = len(optimizer.param_groups)
    if not isinstance(value, (list, tuple)):
        return [copied(value) for _ in range(count)]
    if len(value) != count:
        raise ValueError(
            f"{name} must have one value for each of the optimizer's {count} groups, "
            f"got {len(value)}: {value!r}"
        )
    return [copied(item) for item in value]


def rates(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """As `per_group`, for numbers: floats, or tensors of one element.

    Raises:
        TypeError, ValueError: one that is no finite number, or a list that does not fit.
    """
    values = per_group(name, optimizer, value)
    for item in values:
        checks.number(name, item.item() if _is_single(item) else item)
    return values


def number_or_none(value: Any) -> float | None:
    """Return a number, or a tensor's or array's one element, as a float; None for others."""
    if _is_single(value):
        value = value.item()
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _is_single(value: Any) -> bool:
    if getattr(value, "is_meta", False):  # it holds no number
        return False
    return hasattr(value, "item") and math.prod(getattr(value, "shape", (2,))) == 1


def check_epoch(epoch: Any) -> None:
    """Refuse an epoch to go to that is no finite number.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    found = number_or_none(epoch)
    checks.number("epoch", epoch if found is None else found)


def check_state(state_dict: Any) -> None:
    """Refuse what cannot be a scheduler's state.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must be what a scheduler's state_dict() returned, got {state_dict!r}"
        )
    if "param_groups" in state_dict:
        raise TypeError(
            "state_dict is an optimizer's (it has 'param_groups'): load it with "
            "optimizer.load_state_dict(), and give a scheduler's state_dict() here"
        )
    for key in ("base_lrs", "_last_lr", "_current_lr"):
        lrs = state_dict.get(key)
        # A group of another library's may have none, as in torch.
        is_list = isinstance(lrs, (list, tuple)) and all(
            x is None or number_or_none(x) is not None for x in lrs
        )
        if lrs is not None and not is_list:
            raise TypeError(f"state_dict[{key!r}] must be a list of numbers, got {lrs!r:.80}")
    for key in ("last_epoch", "_step_count"):
        count = state_dict.get(key)
        if count is not None and number_or_none(count) is None:
            raise TypeError(f"state_dict[{key!r}] must be a number, got {count!r:.80}")


def read(optimizer: Optimizer, exact: list[float]) -> list[float]:
    """Return the groups' lrs as floats.

    A tensor lr in float32 has forgotten half the digits of what was written to it. `exact` holds
    what was written: it counts as long as the tensor still holds it, rounded.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if all_plain(rates):
        return rates
    result = []
    for index, rate in enumerate(rates):
        value = number(rate)
        if isinstance(rate, Tensor) and index < len(exact):
            rounded = torch.tensor(exact[index], dtype=rate.dtype).item()
            value = exact[index] if rounded == value else value
        result.append(value)
    return result


def write(optimizer: Optimizer, values: list[Any]) -> tuple[list[Rate], list[float]]:
    """Set the groups' lrs: in place where a group holds a tensor.

    Returns:
        What the groups hold now, in copies, and the same as exact floats for `read`.
    """
    groups = optimizer.param_groups
    plain = all_plain(values)
    if plain and all_plain([group["lr"] for group in groups]):
        for group, value in zip(groups, values, strict=False):
            group["lr"] = value
        return values, []
    written: dict[int, float] = {}
    for group, value in zip(groups, values, strict=False):
        rate = group["lr"]
        if not isinstance(rate, Tensor):
            # Numbers of other kinds (numpy's) would make state dicts unsafe to load.
            group["lr"] = value if isinstance(value, Tensor) else number(value)
            continue
        if written.setdefault(id(rate), float(value)) != float(value):
            # Groups that shared one tensor now differ: this one gets its own.
            rate = group["lr"] = rate.detach().clone()
        with torch.no_grad():
            rate.fill_(float(value))
    return held(optimizer), floats(values)


def held(optimizer: Optimizer, key: str = "lr") -> list[Rate]:
    """Copy what the groups hold under `key`."""
    values = [group[key] for group in optimizer.param_groups]
    return values if all_plain(values) else copied(values)
