"""The states of the random generators of torch, NumPy and Python."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from steprule.checkpoints.errors import CheckpointError


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
