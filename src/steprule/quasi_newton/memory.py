"""What LBFGS carries from step to step, and its form in ``optimizer.state``: torch's keys.

torch keeps all of it in the state of the first parameter: ``func_evals``, ``n_iter``, ``d`` (the
last direction), ``t`` (the last step), ``old_dirs`` (the y, for all their name), ``old_stps`` (the
s), ``ro`` (1 / y's), ``H_diag``, ``prev_flat_grad``, ``prev_loss`` and ``al`` (scratch). Three
keys of our own make a resumed run the same bit for bit: ``sy`` (the triangle R), ``ring_start``,
and ``last_point`` (where an unevaluated last step came from). torch carries them along unread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.history import History
from steprule.quasi_newton.options import Options


@dataclass
class Memory:
    """What one step leaves for the next. Tensors are replaced, never written to."""

    history: History
    n_iter: int = 0
    func_evals: int = 0
    direction: Tensor | None = None
    step: float = 0.0
    prev_grad: Tensor | None = None
    prev_loss: float | None = None
    last_point: Tensor | None = None

    def copy(self) -> Memory:
        """Return a copy to work on; the history is shared, and undoes its own changes."""
        return replace(self)

    def fits(self, layout: Layout, options: Options) -> bool:
        """Tell whether the ring is of the size and dtype that are asked for now."""
        history = self.history
        return (
            history.capacity == options.history_size
            and history.size == layout.size
            and history.dtype == (options.history_dtype or layout.dtype)
            and history.vector_dtype == layout.dtype
            and history.device == layout.device
        )


def empty_memory(layout: Layout, options: Options) -> Memory:
    """Return the memory before the first step."""
    like = torch.empty(0, dtype=layout.dtype, device=layout.device)
    dtype = options.history_dtype or layout.dtype
    return Memory(History(options.history_size, layout.size, dtype, like))


def to_state(memory: Memory) -> dict[str, Any]:
    """Return the memory under torch's keys; tensors are views, good until the next step."""
    history = memory.history
    steps, changes = history.pairs()
    curvature = history.curvature()
    return {
        "func_evals": memory.func_evals,
        "n_iter": memory.n_iter,
        "d": memory.direction,
        "t": memory.step,
        "old_dirs": changes,
        "old_stps": steps,
        "ro": (1.0 / curvature.diagonal()).tolist(),
        "H_diag": history.gamma,
        "prev_flat_grad": memory.prev_grad,
        "prev_loss": memory.prev_loss,
        "al": [None] * history.capacity,
        "sy": curvature,
        "ring_start": history.start,
        "last_point": memory.last_point,
    }


class Written:
    """A state entry as it was written: tells whether somebody has edited it since."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self._entry = entry
        self._seen = _leaves(entry)

    def holds(self, entry: Any) -> bool:
        """Tell whether this is the entry, and nothing in it has changed."""
        if entry is not self._entry:
            return False
        now = _leaves(entry)
        return len(now) == len(self._seen) and all(
            version == known_version
            and (value is known or (not isinstance(value, Tensor) and value == known))
            for (value, version), (known, known_version) in zip(now, self._seen, strict=True)
        )


def _leaves(entry: Mapping[str, Any]) -> list[tuple[Any, int]]:
    """Return all that torch reads of a state, each tensor with how often it was written to."""
    found: list[Any] = []
    for key in _READ:
        value = entry.get(key)
        found += [len(value), *value] if isinstance(value, list) else [value]
    return [(x, x._version if isinstance(x, Tensor) and not x.is_inference() else 0) for x in found]


_READ = (
    *("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag"),
    "prev_flat_grad",
)


def from_state(state: Mapping[str, Any], layout: Layout, options: Options) -> Memory:
    """Return the memory from a state of ours or of torch's.

    A state for another number of values (a parameter was added or removed) keeps its counts, and
    starts a new history.
    """
    memory = empty_memory(layout, options)
    memory.n_iter = int(state.get("n_iter", 0))
    memory.func_evals = int(state.get("func_evals", 0))
    direction = state.get("d")
    if not memory.n_iter or direction is None or direction.numel() != layout.size:
        return memory  # as torch, which begins anew where the count says so
    memory.direction = _taken(direction, layout)
    memory.step = float(state.get("t") or 0.0)
    memory.prev_grad = _taken(state.get("prev_flat_grad"), layout)
    memory.prev_loss = None if state.get("prev_loss") is None else float(state["prev_loss"])
    memory.last_point = _taken(state.get("last_point"), layout)
    steps, changes, ro = (state.get(key) or [] for key in ("old_stps", "old_dirs", "ro"))
    pairs = min(len(steps), len(changes), len(ro))
    gamma = 1.0 if state.get("H_diag") is None else float(state["H_diag"])
    start, is_ours = int(state.get("ring_start") or 0), _is_fresh(state)
    history = memory.history
    history.fill(steps[:pairs], changes[:pairs], gamma, start if is_ours else 0)
    # torch never computes y's again; where it was edited, that counts.
    history.put_diagonal([1.0 / float(value) for value in ro[:pairs] if value])
    if is_ours and pairs == len(history) and history.is_near_curvature(state["sy"]):
        history.put_curvature(state["sy"])
    return memory


def _is_fresh(state: Mapping[str, Any]) -> bool:
    """Tell whether our own keys belong to these pairs: torch may have gone on without them."""
    curvature = state.get("sy")
    ro = state.get("ro") or []
    if not isinstance(curvature, Tensor) or curvature.shape != (len(ro), len(ro)):
        return False
    return bool((1.0 / curvature.diagonal()).tolist() == [float(value) for value in ro])


def _taken(value: Tensor | None, layout: Layout) -> Tensor | None:
    """Return a copy: torch writes to its own in place, and both may hold the same tensor."""
    if value is None:
        return None
    return value.detach().to(device=layout.device, dtype=layout.dtype, copy=True)
