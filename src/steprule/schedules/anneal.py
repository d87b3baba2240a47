"""From one value to another: the weights that linear, cosine and polynomial curves share."""

from __future__ import annotations

import numpy as np

from steprule.schedules.base import Array


def progress(step: Array, steps: float) -> Array:
    """Share of `steps` done, from 0 to 1, where it stays; 1 from the start if `steps` is 0."""
    if steps <= 0:
        return np.ones_like(step)
    share: Array = np.minimum(step / steps, 1.0)
    return share


def cosine_left(done: Array) -> Array:
    """Share of the way still to go on half a cosine: (1 + cos(pi * done)) / 2."""
    left: Array = (1 + np.cos(np.pi * done)) / 2
    return left


def between(start: float, stop: float, left: Array) -> Array:
    """`start` where all is left to go, `stop` where nothing is; both ends are exact."""
    return np.where(left == 1, start, stop + (start - stop) * left)
