"""Which leaves share memory: threads must not race for it."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.engines.engine import Leaf


def overlapping(leaves: Sequence[Leaf]) -> set[int]:
    """Return the indices of leaves whose parameter or state shares written memory with another."""
    spans = []
    for i, leaf in enumerate(leaves):
        for tensor in (leaf.param, *(leaf.state[key] for key in leaf.storage.keys)):
            if tensor.numel():
                start = tensor.data_ptr()
                spans.append((start, start + tensor.numel() * tensor.element_size(), i))
    spans.sort()
    found: set[int] = set()
    furthest, owner = 0, -1
    for start, end, i in spans:
        if start < furthest:
            found.update((i, owner))
        if end > furthest:
            furthest, owner = end, i
    return found
