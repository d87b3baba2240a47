"""ZeRO-1 without a wrapper: an optimizer's state divided among ranks that have all parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from steprule.optimizer.base import Optimizer
from steprule.planning.owners import Owners, check_dividable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_Optimizer = TypeVar("_Optimizer", bound=Optimizer)


def shard_state(optimizer: _Optimizer, group: ProcessGroup | None = None) -> _Optimizer:
    """Divide an optimizer's state among ranks: each keeps and updates its part of the parameters.

    ::

        model = DistributedDataParallel(model)
        optimizer = steprule.shard_state(steprule.AdamW(model.parameters(), lr=1e-3))

    Parameters are whole on every rank, with the gradients that are averaged over all
    (``DistributedDataParallel`` does so); state and updates are their owner's alone, which sends
    them to the others at the end of a step. What comes out is one process's, bit for bit. Guards
    look at all gradients; a step is skipped or refused on all ranks, or on none.

    Every rank must call this, and from then on, together: ``step``, ``state_dict`` (which has the
    whole state on every rank), ``save`` (one file, which the first rank writes),
    ``averaged``, and ``add_param_group``, with the same parameters in the same order.
    ``load_state_dict`` and ``load`` take the whole, and keep this rank's part.

    Args:
        optimizer: with or without state, of which the others' part is let go of.
        group: the ranks; by default all. In a group of one nothing is divided.

    Returns:
        The optimizer itself.

    Raises:
        TypeError: none of ours, or one without a rule (LBFGS).
        ValueError: a parameter that is a DTensor, or on meta; a group that is ``differentiable``;
            this rank is none of the group's; the state is divided already; or the ranks have other
            parameters. Nothing is changed then.
        RuntimeError: there is no process group, or steps are taken in the backward pass.
    """
    _check(optimizer)
    ranks = _ranks_of(group)
    if ranks.size() == 1:
        return optimizer
    owners = Owners(ranks)
    owners.cover(optimizer.param_groups)
    owners.check_alike()
    optimizer._divide_among(owners)
    return optimizer


def _ranks_of(group: ProcessGroup | None) -> ProcessGroup:
    """Return the ranks that state is divided among.

    Raises:
        TypeError: ``group`` is no process group.
        ValueError: this process is none of them.
        RuntimeError: there are no processes but this one.
    """
    import torch.distributed as dist

    if not dist.is_available():
        raise RuntimeError("shard_state: this torch was built without torch.distributed")
    absent: Any = dist.GroupMember.NON_GROUP_MEMBER  # what new_group() returns to others
    if group is absent:
        raise ValueError("shard_state: this process is none of the group's")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "shard_state: group must be a process group (torch.distributed.new_group(), "
            f"mesh.get_group()) or None for all ranks, got {type(group).__name__} {group!r:.80}"
        )
    if not dist.is_initialized():
        raise RuntimeError(
            "shard_state divides state among processes: call torch.distributed.init_process_group "
            "first (torchrun starts several)"
        )
    ranks: Any = dist.group.WORLD if group is None else group
    if dist.get_rank(ranks) < 0:
        raise ValueError("shard_state: this process is none of the group's")
    return cast("ProcessGroup", ranks)


def _check(optimizer: object) -> None:
    """Refuse an optimizer whose state can't be divided.

    Raises:
        TypeError, ValueError, RuntimeError: saying why.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"shard_state needs an optimizer of steprule, got {type(optimizer).__name__}: "
            "torch.distributed.optim.ZeroRedundancyOptimizer takes any"
        )
    if optimizer.rule is None and not optimizer._kinds():
        raise TypeError(
            f"shard_state: {type(optimizer).__name__} has no rule, by which a parameter is updated "
            "without the others: its state can't be divided"
        )
    if optimizer._owners is not None:
        raise ValueError("shard_state: the optimizer's state is divided among ranks already")
    if optimizer._backward_steps is not None:
        raise RuntimeError(
            "shard_state: the optimizer steps in the backward pass, where ranks can't wait for "
            "each other's parameters"
        )
    for i, options in enumerate(optimizer.param_groups):
        check_dividable(options, i)
