"""What engines on tensors offer beside the contract: an update that a compiler's graph may hold."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from steprule.engines.engine import Leaf
from steprule.language.form import Form


@runtime_checkable
class UpdatesInGraphs(Protocol):
    """An engine that updates by torch's operations alone, the same ones at every step."""

    def update_in_graph(self, form: Form, leaf: Leaf, numbers: dict[str, Any]) -> None:
        """Update a leaf without reading any number of it; numbers are tensors of one element."""
