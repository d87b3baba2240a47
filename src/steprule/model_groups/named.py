"""The parameters of a model: each once, with its names and the modules that it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim.swa_utils import AveragedModel

# What compiling, activation checkpointing and FSDP put a module behind, wherever it is in a model.
_BEHIND = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)
_TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class NamedParam:
    """A parameter of a model.

    Attributes:
        name: its first name, without the parts that wrappers put into names.
        param: the tensor.
        path: the modules that it is in: for each part of the name, that which has it.
        other_names: those that it has as well, where weights are tied.
        is_table: whether it is an embedding's, under any of its names.
    """

    name: str
    param: Tensor
    path: tuple[nn.Module, ...]
    other_names: tuple[str, ...] = ()
    is_table: bool = False

    @property
    def owner(self) -> nn.Module:
        """The module that holds it itself."""
        return self.path[-1]


def named_params(model: nn.Module) -> list[NamedParam]:
    """Return a model's parameters in its own order, frozen ones too."""
    places: dict[int, list[tuple[str, tuple[nn.Module, ...]]]] = {}
    found: dict[int, Tensor] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(param), []).append(_place_of(model, name.split(".")))
        found[id(param)] = param
    return [
        NamedParam(
            *(places[key][0][0], param, places[key][0][1]),
            tuple(name for name, _ in places[key][1:]),
            any(isinstance(path[-1], _TABLES) for _, path in places[key]),
        )
        for key, param in found.items()
    ]


def plain_name(model: nn.Module, name: str) -> str:
    """Return a parameter's name without the parts that wrappers put into it."""
    return _place_of(model, name.split("."))[0]


def _place_of(model: nn.Module, parts: Sequence[str]) -> tuple[str, tuple[nn.Module, ...]]:
    kept: list[str] = []
    path: list[nn.Module] = []
    module: Any = model
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if is_last or not _is_put_in(module, part):
            kept.append(part)
            path.append(module)
        module = module if is_last else getattr(module, part)
    return ".".join(kept), tuple(path)


def _is_put_in(module: nn.Module, part: str) -> bool:
    return part in _BEHIND or (part == "module" and isinstance(module, _WRAPPERS))


def unwrapped(model: Any) -> nn.Module:
    """Return the model in wrappers that only put something before the names.

    Raises:
        TypeError: no model.
        ValueError: one whose parameters have no shape yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose modules tell what its parameters are, got "
            f"{type(model).__name__}: pass the model itself"
        )
    for name, param in model.named_parameters():
        if isinstance(param, UninitializedParameter):
            raise ValueError(
                f"model: {name!r} has no shape yet, it is of a lazy module: call the model on a "
                "batch before its parameters are sorted"
            )
    inside: nn.Module = model
    while within := [one for part, one in inside.named_children() if _is_put_in(inside, part)]:
        inside = within[0]
    return inside
