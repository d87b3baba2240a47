"""The form that LBFGS's memory has in ``optimizer.state``: torch's keys.

torch keeps all of it in the state of the first parameter: ``func_evals``, ``n_iter``, ``d`` (the
last direction), ``t`` (the last step), ``old_dirs`` (the y, for all their name), ``old_stps`` (the
s), ``ro`` (1 / y's), ``H_diag``, ``prev_flat_grad``, ``prev_loss`` and ``al`` (scratch). Three
keys of our own make a resumed run the same bit for bit: ``sy`` (the triangle R), ``ring_start``,
and ``last_point`` (where an unevaluated last step came from). torch carries them along unread.
Sharded problems have another form (parted_state.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from steprule.distributed.shards import local_of
from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.memory import Memory, empty_memory
from steprule.quasi_newton.options import Options
from steprule.quasi_newton.parted_state import is_parted, part_of, whole_of
from steprule.quasi_newton.shared_history import SharedHistory


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
    """State entries as they were written: tells whether somebody has edited them since.

    Args:
        entries: of the parameters that have one, each the very dict that is in the state.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._entries = list(entries)
        self._seen = _leaves(self._entries)

    def holds(self, entries: Sequence[Any]) -> bool:
        """Tell whether these are the entries, and nothing in them has changed."""
        if len(entries) != len(self._entries) or any(
            entry is not known for entry, known in zip(entries, self._entries, strict=True)
        ):
            return False
        now = _leaves(entries)
        return len(now) == len(self._seen) and all(
            version == known_version
            and (value is known or (not isinstance(value, Tensor) and value == known))
            for (value, version), (known, known_version) in zip(now, self._seen, strict=True)
        )


def _leaves(entries: Sequence[Mapping[str, Any]]) -> list[tuple[Any, int]]:
    """Return all that is read of a state, each tensor with how often it was written to."""
    found: list[Any] = []
    for entry in entries:
        for key in _READ:
            value = entry.get(key)
            found += [len(value), *value] if isinstance(value, list) else [value]
    return [(x, _version(x)) for x in found]


def _version(value: Any) -> int:
    if not isinstance(value, Tensor) or value.is_inference():
        return 0
    return local_of(value)._version


_READ = (
    *("func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag"),
    *("prev_flat_grad", "pairs"),
)


def from_state(
    entries: Sequence[Mapping[str, Any] | None], layout: Layout, options: Options
) -> Memory:
    """Return the memory from a state of ours or of torch's, each parameter's in order.

    A state for another number of values (a parameter was added or removed) keeps its counts, and
    starts a new history.
    """
    state = entries[0] or {}
    if any(map(is_parted, entries)):
        state = whole_of(entries, layout) or {}
    elif layout.is_shared:
        state = part_of(state, layout)
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
        if isinstance(history, SharedHistory) and isinstance(state.get("yy"), Tensor):
            history.put_gram(state["yy"])
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
