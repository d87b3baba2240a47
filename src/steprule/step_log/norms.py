"""2-norms of groups of tensors, waited for once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steprule.distributed.shards import groups_of, is_dtensor, local_of
from steprule.distributed.sums import all_reduce
from steprule.formats.floating import real_view

Groups = Sequence[Sequence[tuple[Tensor, Tensor | None]]]


@torch.no_grad()
def norms_of(groups: Groups) -> list[float]:
    """Return the 2-norm of each group's tensors together, in float64: squares do not overflow.

    Args:
        groups: pairs of a parameter and a tensor that is spread over ranks as it is: itself, its
            gradient, a difference; None counts as 0. Every rank must ask, of the same parameters.
    """
    sums: dict[tuple[object, ...], Tensor] = {}
    for index, pairs in enumerate(groups):
        for key, tensors in _by_kind(pairs).items():
            device, where = key[0], (key[0], key[2])
            if where not in sums:
                sums[where] = torch.zeros(len(groups), dtype=torch.float64, device=device)  # type: ignore[call-overload]
            if tensors:
                norms = torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float64))
                sums[where][index] += norms.square().sum()
    totals = [0.0] * len(groups)
    for (_, shared), vector in sums.items():
        if shared:
            all_reduce(vector, shared)  # type: ignore[arg-type]
        totals = [a + b for a, b in zip(totals, vector.tolist(), strict=True)]
    return [math.sqrt(total) if total >= 0 else math.nan for total in totals]


def _by_kind(
    pairs: Sequence[tuple[Tensor, Tensor | None]],
) -> dict[tuple[object, ...], list[Tensor]]:
    """Return plain tensors by device, dtype and the ranks that have other parts of them."""
    kinds: dict[tuple[object, ...], list[Tensor]] = {}
    for param, tensor in pairs:
        shared = groups_of(param) if is_dtensor(param) else ()
        key = param.device, param.dtype, shared
        held = kinds.setdefault(key, [])
        if tensor is not None:
            plain = local_of(tensor.detach())
            plain = plain.coalesce().values() if plain.is_sparse else plain
            held.append(real_view(plain))
    return kinds
