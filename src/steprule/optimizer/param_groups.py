"""Parameter groups: what the user passes, checked and put into one form."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

ParamsT: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]


def listed_groups(params: Any) -> list[dict[str, Any]]:
    """Return the argument ``params`` of an optimizer as a list of group dicts.

    Raises:
        TypeError: a bare tensor, or something that is not iterable.
        ValueError: nothing in it.
    """
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got {torch.typename(params)}: put it in a list, [param]"
        )
    if isinstance(params, Mapping):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            "but got a dict: put a parameter group in a list, [{'params': ...}], and pass "
            "named parameters as model.named_parameters()"
        )
    if not isinstance(params, Iterable):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, "
            f"but got {type(params).__name__}{_of_module(params)}"
        )
    if isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    listed = list(params)
    if not listed:
        raise ValueError(
            "optimizer got an empty parameter list: has the model parameters, and was this "
            "generator not used up before (model.parameters() must be called anew each time)?"
        )
    kinds = {isinstance(entry, dict) for entry in listed}
    if len(kinds) > 1:
        raise TypeError("params mixes parameter groups (dicts) with bare parameters")
    return [dict(g) for g in listed] if kinds == {True} else [{"params": listed}]


_UNORDERED = (
    "optimizer parameters need to be organized in ordered collections, but the ordering of "
    "tensors in sets will change between runs. Please use a list instead."
)


def _of_module(value: Any) -> str:
    return ": pass its parameters, net.parameters()" if isinstance(value, nn.Module) else ""


def split_names(params: Any, where: str) -> tuple[list[Tensor], list[str] | None]:
    """Return a group's ``params`` as a list of tensors, and their names if they came with names.

    Raises:
        TypeError: a set, or an entry that is neither a tensor nor a pair of a name and one.
        ValueError: only some of the entries are named.
    """
    if isinstance(params, Tensor):
        params = [params]
    elif isinstance(params, (set, frozenset)):
        raise TypeError(_UNORDERED)
    elif not isinstance(params, Iterable):
        raise TypeError(
            f"{where}params must be a tensor or a list of tensors, got {type(params).__name__}"
        )
    entries = list(params)
    named = [isinstance(entry, tuple) for entry in entries]
    if any(named) and not all(named):
        raise ValueError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    for i, entry in enumerate(entries):
        if isinstance(entry, tuple) and (len(entry) != 2 or isinstance(entry[0], Tensor)):
            kinds = ", ".join(type(x).__name__ for x in entry)
            raise TypeError(
                f"{where}a tuple among the params is a pair (name, tensor), the one at index {i} "
                f"is ({kinds}): put tensors in a list of their own, [p1, p2]"
            )
    tensors = [
        entry[1] if is_named else entry for entry, is_named in zip(entries, named, strict=True)
    ]
    for i, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{where}optimizer can only optimize Tensors, but one of the params is "
                f"{torch.typename(tensor)} (at index {i}){_of_module(tensor)}"
            )
    return tensors, [str(entry[0]) for entry in entries] if any(named) else None


def check_tensors(
    params: Sequence[Tensor], names: list[str] | None, where: str, differentiable: bool
) -> None:
    """Refuse tensors that cannot be optimized; warn of one listed twice.

    Raises:
        ValueError: a tensor that is the result of a computation.
    """
    for i, param in enumerate(params):
        if not differentiable and not (param.is_leaf or param.retains_grad):
            label = repr(names[i]) if names else f"the one at index {i}"
            raise ValueError(
                f"{where}can't optimize a non-leaf Tensor: {label}, of shape {tuple(param.shape)}, "
                "is the result of a computation; pass the tensor it was computed from, or "
                "x.detach().requires_grad_()"
            )
    if len(set(params)) != len(params):
        warnings.warn(
            "optimizer contains a parameter group with duplicate parameters: each is updated "
            "once for every time it is listed; in future, this will cause an error; "
            "see github.com/pytorch/pytorch/issues/40967 for more information",
            stacklevel=5,
        )


def check_updated_by(
    group: Mapping[str, Any], cls: type, known: Container[str], where: str
) -> None:
    """Refuse a group that says to be updated by another optimizer than ``cls``.

    Args:
        group: its ``"optimizer"`` says so; what is no name of ours is a key of the user's own.
        cls: the class that it is given to.
        known: names of optimizers.
        where: put before the message.

    Raises:
        ValueError: naming both.
    """
    named = group.get("optimizer")
    if not isinstance(named, str) or named in {base.__name__ for base in cls.__mro__}:
        return
    if named in known:
        raise ValueError(
            f"{where}'optimizer' says that {named} is to update it, not {cls.__name__}: "
            "steprule.build_optimizer(groups) makes one optimizer of groups of several"
        )


def check_against_others(group: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a group that shares parameters with ``others`` or is named where they are not.

    Raises:
        ValueError: saying which.
    """
    is_named = "param_names" in group
    for other in others:
        if is_named != ("param_names" in other):
            raise ValueError(
                "all optimizer param groups should be with/without names. cannot add param group "
                f"{'with' if is_named else 'without'} names to the optimizer"
            )
    taken = {p: i for i, other in enumerate(others) for p in other["params"]}
    for i, param in enumerate(group["params"]):
        if param in taken:
            label = repr(group["param_names"][i]) if is_named else f"the one at index {i}"
            raise ValueError(
                f"some parameters appear in more than one parameter group: {label} of the new "
                f"group, of shape {tuple(param.shape)}, is already in group {taken[param]}"
            )
