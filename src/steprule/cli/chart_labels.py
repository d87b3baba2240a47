"""Names at the ends of curves: joined where curves end together, moved apart where they collide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SAME_PLACE = 0.0015
LABEL_LENGTH = 22


def joined(names: Sequence[str]) -> str:
    """Return names in one line, as many as there is room for."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= LABEL_LENGTH:
        shown += 1
    return ", ".join(names[:shown]) + (f" +{len(names) - shown}" if shown < len(names) else "")


def neighbours(ends: Sequence[tuple[float, T]]) -> list[tuple[float, list[T]]]:
    """Join, from the bottom up, the curves whose ends the eye cannot tell apart."""
    groups: list[tuple[float, list[T]]] = []
    for place, one in sorted(ends, key=lambda end: end[0]):
        if groups and place - groups[-1][0] < SAME_PLACE:
            groups[-1][1].append(one)
        else:
            groups.append((place, [one]))
    return groups


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted `places` in [0, 1] as little as makes them `gap` apart, keeping their order."""
    clusters: list[list[float]] = []
    for place in places:
        clusters.append([place])
        while len(clusters) > 1 and _start(clusters[-1], gap) < (
            _start(clusters[-2], gap) + gap * len(clusters[-2])
        ):
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [
        _start(cluster, gap) + gap * index for cluster in clusters for index in range(len(cluster))
    ]


def _start(cluster: Sequence[float], gap: float) -> float:
    extent = gap * (len(cluster) - 1)
    centred = sum(cluster) / len(cluster) - extent / 2
    return min(max(centred, 0.0), 1.0 - extent)
