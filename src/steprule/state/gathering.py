"""State that is divided among ranks, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from steprule.distributed.byte_exchange import ByteExchange

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Described:
    """A tensor that another rank has.

    Attributes:
        dtype: its own.
        shape: likewise.
        is_on_host: whether it is on the CPU, wherever its parameter is.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    is_on_host: bool


def gathered_state(
    own: Mapping[Any, Any],
    params: Sequence[Tensor],
    group: ProcessGroup,
    exchange: ByteExchange,
    *,
    is_kept: bool,
) -> dict[Any, Any]:
    """Return the state of all parameters, of which each rank has some: every rank must come.

    What ranks have is first described to all, and then sent as bytes.

    Args:
        own: this rank's part.
        params: the optimizer's, in order; the same on every rank.
        group: the ranks.
        exchange: sends tensors over it.
        is_kept: whether this rank wants what others have.

    Returns:
        Entries in the parameters' order, this rank's own in its own tensors; then what is of no
        parameter. Where nothing is kept, the own part.
    """
    import torch.distributed as dist

    described: dict[int, Any] = {}
    sent: list[Tensor] = []

    def describe(tensor: Tensor) -> Described:
        sent.append(tensor)
        return Described(tensor.dtype, tuple(tensor.shape), tensor.is_cpu)

    for i, param in enumerate(params):
        if param in own:
            described[i] = _mapped(own[param], describe)
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, described, group)
    rank = dist.get_rank(group)
    tensors: list[list[Tensor]] = []
    found: dict[int, Any] = {}
    for other, entries in enumerate(everyone):
        made: list[Tensor] = []
        for i, entry in entries.items() if other != rank else ():
            found[i] = _mapped(entry, _room_for(params[i], made, is_kept=is_kept))
        tensors.append(sent if other == rank else made)
    exchange.send(tensors)
    if not is_kept:
        return dict(own)
    others = {key: value for key, value in own.items() if not isinstance(key, Tensor)}
    known = {param: found[i] for i, param in enumerate(params) if i in found}
    return {p: own.get(p, known.get(p)) for p in params if p in own or p in known} | others


def _room_for(param: Tensor, made: list[Tensor], *, is_kept: bool) -> Callable[[Described], Tensor]:
    """Return what makes room for tensors that other ranks have, and lists them."""

    def make(one: Described) -> Tensor:
        device = torch.device("cpu") if one.is_on_host else param.device
        device = device if is_kept else torch.device("meta")
        made.append(torch.empty(one.shape, dtype=one.dtype, device=device))
        return made[-1]

    return make


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a nested value with its tensors, or descriptions of such, changed."""
    if isinstance(value, (Tensor, Described)):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(inner, change) for inner in value)
    return value
