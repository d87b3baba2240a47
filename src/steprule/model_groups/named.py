"""The parameters of a model: each once, with its names and the module that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class NamedParam:
    """A parameter of a model.

    Attributes:
        name: its first name; what a compiled model or ``DistributedDataParallel`` puts before
            names is left out.
        param: the tensor.
        owner: the module that holds it itself.
        other_names: those that it has as well, where weights are tied.
    """

    name: str
    param: Tensor
    owner: nn.Module
    other_names: tuple[str, ...] = ()


def named_params(model: nn.Module) -> list[NamedParam]:
    """Return a model's parameters in its own order, frozen ones too."""
    names: dict[int, list[str]] = {}
    found: dict[int, Tensor] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
        found[id(param)] = param
    return [
        NamedParam(
            names[key][0],
            param,
            model.get_submodule(names[key][0].rpartition(".")[0]),
            tuple(names[key][1:]),
        )
        for key, param in found.items()
    ]


def unwrapped(model: Any) -> nn.Module:
    """Return the model in wrappers that only put something before the names.

    Raises:
        TypeError: no model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose modules tell what its parameters are, got "
            f"{type(model).__name__}: pass the model itself"
        )
    inner = getattr(model, "_orig_mod", None)  # of torch.compile
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
