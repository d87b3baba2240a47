"""What LBFGS carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.history import History
from steprule.quasi_newton.options import Options
from steprule.quasi_newton.ranks import SharedRanks
from steprule.quasi_newton.shared_history import SharedHistory


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
            and (history.ranks if isinstance(history, SharedHistory) else None)
            == (layout.ranks if layout.is_shared else None)
        )


def empty_memory(layout: Layout, options: Options) -> Memory:
    """Return the memory before the first step."""
    like = torch.empty(0, dtype=layout.dtype, device=layout.device)
    dtype = options.history_dtype or layout.dtype
    ranks = layout.ranks
    if isinstance(ranks, SharedRanks):
        return Memory(SharedHistory(options.history_size, layout.size, dtype, like, ranks))
    return Memory(History(options.history_size, layout.size, dtype, like))
