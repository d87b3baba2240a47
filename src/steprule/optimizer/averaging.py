"""Parameters exchanged for their running averages, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor, local_of
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.floating import compute_dtype, real_view
from steprule.language.averaging import AVERAGE, DECAY
from steprule.planning.owners import Owners
from steprule.state.storing import columns_in, format_in

STEP_AMONG_AVERAGES = (
    "the parameters are at their running averages, an update would be lost: step after the block "
    "of optimizer.averaged()"
)


def average_in(param: Tensor, entry: Mapping[str, Any]) -> Tensor | None:
    """Return a parameter's running average, as real numbers; None if there is none.

    Of a sharded parameter, what is here of it.
    """
    if not isinstance(entry, Mapping) or AVERAGE not in entry:
        return None
    storage = format_in(AVERAGE, entry)
    columns, shape = columns_in(AVERAGE, entry, storage), local_of(param).shape
    return storage.read(columns, compute_dtype(param), shape)


@contextmanager
def averages_in_place(
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Any],
    changed: Callable[[], None],
    owners: Owners | None = None,
) -> Iterator[None]:
    """Put averages where the parameters are, and at the end the parameters back, bit for bit.

    Args:
        groups: the optimizer's.
        state: the optimizer's.
        changed: called after each exchange.
        owners: of the parameters, where each rank has the averages of some: all must come.

    Raises:
        RuntimeError: no group keeps averages.
    """
    params = [p for group in groups if group.get(DECAY) is not None for p in group["params"]]
    if not params:
        raise RuntimeError(
            "no group keeps running averages: pass ema_decay=0.999 to the optimizer, or set it in "
            "a group"
        )
    unique = list(dict.fromkeys(params))
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad(), uninterrupted:
            if owners is not None:
                owners.cover(groups)
            averages = [average_in(param, state.get(param, {})) for param in unique]
            for param, average in zip(unique, averages, strict=True):
                if owners is not None and not owners.has(param):
                    kept.append((param, param.detach().clone()))
                if average is not None:  # one that was never updated is its own average
                    here = local_of(param)
                    kept.append((param, here.detach().clone()))
                    real_view(here).copy_(average)
                    count_change(param)
            if owners is not None:
                owners.send(unique, "averaged()")
        changed()
        yield
    finally:
        with torch.no_grad(), uninterrupted:
            for param, value in reversed(kept):  # two may share memory
                local_of(param).copy_(value)
                count_change(param)
        changed()


def count_change(param: Tensor) -> None:
    """Let graphs that saved a sharded parameter know of its change: what is here knows already."""
    if is_dtensor(param):
        torch.autograd.graph.increment_version(param)
