"""The states of the random generators of torch, NumPy and Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from steprule.checkpoints.errors import CheckpointError

#: Under which a checkpoint has what is of each rank its own: a list, rank by rank.
OF_RANKS = "of_ranks"


def random_states() -> dict[str, Any]:
    """Return the states of the global generators: torch's (of every device), NumPy's, Python's."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002  # the global one, whatever uses it
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def of_this_rank(saved: Any) -> Any:
    """Return the states that are this rank's, of those that one process or many have saved.

    Raises:
        CheckpointError: fewer ranks have saved theirs than there are now: several would draw the
            same numbers.
    """
    if not isinstance(saved, dict) or OF_RANKS not in saved:
        return saved
    states, rank, size = saved[OF_RANKS], *_rank_and_size()
    if not isinstance(states, list) or len(states) < size:
        count = len(states) if isinstance(states, list) else 0
        raise CheckpointError(
            f"random states were saved by {count} ranks, there are {size} now, of which several "
            "would draw the same numbers: load without random_state, and seed each rank"
        )
    return states[rank]


def _rank_and_size() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def set_random_states(states: Any) -> None:
    """Put the generators where :func:`random_states` found them, or leave all as they are.

    Raises:
        CheckpointError: it does not say where that is.
    """
    before = random_states()
    try:
        _set(states)
    except (AttributeError, LookupError, ArithmeticError, TypeError, ValueError, RuntimeError) as e:
        _set(before)
        raise CheckpointError(f"the saved random states can't be set: {e}") from None


def _set(states: Any) -> None:
    torch.set_rng_state(states["torch"].clone())
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    if "cuda" in states and torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state.clone(), device)
