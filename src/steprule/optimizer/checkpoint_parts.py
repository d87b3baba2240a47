"""An optimizer's state in a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from steprule.checkpoints.errors import CheckpointError

#: The parts of a checkpoint that are by name; ``""`` is the name of a lone one.
MODEL, OPTIMIZER, SCHEDULERS = "model", "optimizer", "schedulers"


def optimizer_content(optimizer: Any) -> dict[str, Any]:
    """Return what is saved of a lone optimizer."""
    entry = {"class": type(optimizer).__name__, "state_dict": optimizer.state_dict()}
    return {OPTIMIZER: {"": entry}}


def lone_state_dict(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state dict of the only optimizer in a checkpoint.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    saved = parts_of(content, OPTIMIZER, path)
    if len(saved) != 1:
        count = f"{len(saved)} optimizers ({', '.join(map(repr, saved))})" if saved else "none"
        raise CheckpointError(
            f"{path} has {count}: load it with steprule.load_training"
            if saved
            else f"{path} has no optimizer's state"
        )
    (entry,) = saved.values()
    state = entry.get("state_dict")
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} has no state dict of its optimizer")
    return state


def parts_of(
    content: Any, what: str, path: str | os.PathLike[str]
) -> Mapping[str, Mapping[str, Any]]:
    """Return one kind of parts of a checkpoint by their names.

    Raises:
        CheckpointError: its content has another form.
    """
    parts = content.get(what, {}) if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(x, dict) for x in parts.values()):
        raise CheckpointError(f"{path} is damaged: its content is no training run")
    return parts
