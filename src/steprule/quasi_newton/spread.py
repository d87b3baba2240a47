"""Over which ranks the parameters are spread, and which of the ranks counts each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from torch import Tensor

from steprule.distributed.shards import is_dtensor, local_of
from steprule.state.labels import label_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def check_placements(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a parameter that no rank has a part of: one that is a sum yet to be made.

    Raises:
        ValueError: naming it.
    """
    for k, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if is_dtensor(param) and any(p.is_partial() for p in param.placements):
                raise ValueError(
                    f"{label_of(group, k, position)} has the placements {param.placements}, of "
                    "which LBFGS can't move a part: redistribute it to Shard or Replicate"
                )


def longest_local(param: Tensor) -> int:
    """Return how many elements the rank with the most has of a parameter."""
    if not is_dtensor(param):
        return param.numel()
    shape = list(param.shape)
    for size, placement in zip(param.device_mesh.shape, param.placements, strict=True):
        dim = getattr(placement, "dim", None)
        if dim is not None:
            shape[dim] = -(-shape[dim] // size)
    return max(prod(shape), local_of(param).numel())


@dataclass(frozen=True)
class Spread:
    """The ranks of one problem.

    Attributes:
        groups: to reduce over in turn, so as to reach each rank.
        count: how many ranks there are.
        index: which of them this one is.
        counts: for each parameter, whether this rank is the one to count what it has of it.
    """

    groups: tuple[ProcessGroup, ...]
    count: int
    index: int
    counts: tuple[bool, ...]

    @classmethod
    def of(cls, params: Sequence[Tensor]) -> Spread:
        """Return over which ranks these parameters are spread; some are ``DTensor``.

        Raises:
            ValueError: meshes that overlap without being of the same ranks.
        """
        import torch.distributed as dist

        sharded = [param for param in params if is_dtensor(param)]
        meshes = list({id(param.device_mesh): param.device_mesh for param in sharded}.values())
        if len({tuple(sorted(mesh.mesh.flatten().tolist())) for mesh in meshes}) == 1:
            axes = min((_axes(mesh) for mesh in meshes), key=len)
            is_product = False
        else:
            axes = {key: group for mesh in meshes for key, group in _axes(mesh).items()}
            is_product = True
            _check_product(list(axes))
        count = prod(len(key) for key in axes)
        groups = tuple(axes.values())
        index = 0
        for group in groups:
            index = index * group.size() + group.rank()
        if groups and count == dist.get_world_size():
            # Every rank there is: one message instead of one for each dimension of a mesh.
            groups, index = (dist.group.WORLD,), dist.get_rank()  # type: ignore[assignment]
        known: dict[tuple[int, Any], bool] = {}
        counts = []
        for param in params:
            if not is_dtensor(param):
                counts.append(index == 0)
                continue
            kind = id(param.device_mesh), param.placements
            if kind not in known:
                known[kind] = _counts(param, axes if is_product else _axes(param.device_mesh))
            counts.append(known[kind])
        return cls(groups, count, index, tuple(counts))


def _axes(mesh: DeviceMesh) -> dict[tuple[int, ...], ProcessGroup]:
    """Return the groups of a mesh that this rank is in, by their ranks; not of itself alone."""
    import torch.distributed as dist

    groups = [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    return {tuple(dist.get_process_group_ranks(group)): group for group in groups}


def _counts(param: DTensor, axes: Mapping[tuple[int, ...], ProcessGroup]) -> bool:
    """Tell whether this rank is the first of those that have the same part of a parameter."""
    import torch.distributed as dist

    mesh = param.device_mesh
    along = {
        tuple(dist.get_process_group_ranks(mesh.get_group(dim)))
        for dim, placement in enumerate(param.placements)
        if not placement.is_replicate()
    }
    return all(group.rank() == 0 for key, group in axes.items() if key not in along)


def _check_product(axes: Sequence[tuple[int, ...]]) -> None:
    import torch.distributed as dist

    overlap = any(
        len({*one} & {*other}) > 1 for k, one in enumerate(axes) for other in axes[k + 1 :]
    )
    if overlap or dist.get_world_size() % prod(len(key) for key in axes):
        raise ValueError(
            "LBFGS needs all its parameters on meshes of the same ranks, or on dimensions of one "
            f"mesh, to count each of them once: got process groups of the ranks {list(axes)}"
        )
