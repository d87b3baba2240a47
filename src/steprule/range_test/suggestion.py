"""The lr that a sweep suggests, and why."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
#: Why sweeps end that have not seen the loss diverge.
ALL_TAKEN, INTERRUPTED, DATA_ENDED = (
    "all steps were taken",
    "the sweep was interrupted",
    "data ended",
)
_FEWEST = 5
# A fall by less of the loss, that goes on, says no more than that lrs were too small.
_LITTLE = 0.01
# A mean at the edge is of half as many losses, and the lowest of some ten independent means is
# that much lower than one: of noise alone a fall by more is hardly seen.
_SCATTERS = 5


def smoothed(losses: Sequence[float], half: int) -> Array:
    """Return a centred, triangular mean over ``half`` losses on each side, cut off above.

    A mean of the past would lag behind: the fall would seem to come at a higher lr than it does.
    What has exploded counts as no more than a loss as far above the first as the lowest is below,
    so that its neighbours are still seen.
    """
    values = np.asarray(losses, dtype=np.float64)
    if not len(values):
        return values
    first = float(np.median(values[: half + 1]))
    ceiling = first + max(first - float(values.min()), float(np.ptp(values[: half + 1])))
    cut = np.minimum(values, ceiling)
    weights = half + 1 - np.abs(np.arange(-half, half + 1, dtype=np.float64))
    sums = np.convolve(cut, weights)[half : half + len(cut)]
    counts = np.convolve(np.ones_like(cut), weights)[half : half + len(cut)]
    mean: Array = sums / counts
    return mean


def suggestion_of(
    lrs: Sequence[float],
    losses: Sequence[float],
    mean: Array,
    half: int,
    stopped: str = ALL_TAKEN,
) -> tuple[float | None, str]:
    """Return the lr at which the loss falls fastest, and in words why it, or why none."""
    if len(lrs) < _FEWEST:
        more = "; take more steps" if stopped == ALL_TAKEN else _more(stopped)
        more = more or "; is lr_min low enough?"
        return None, f"too few steps to tell: {len(lrs)}, at least {_FEWEST} are needed{more}"
    more = _more(stopped)
    lowest = int(np.argmin(mean))
    fall = float(mean[0] - mean[lowest])
    raw = np.asarray(losses[: lowest + 1])
    # How far a mean of so many may be off, by how far single losses are.
    scatter = float(np.sqrt(np.mean((raw - mean[: lowest + 1]) ** 2) / (half + 1)))
    is_cut_off = stopped == INTERRUPTED or stopped.startswith(DATA_ENDED)
    if lowest == 0 or fall <= _SCATTERS * scatter:
        if stopped == ALL_TAKEN and float(mean[-1] - mean[0]) > _LITTLE * abs(float(mean[0])):
            more = ""  # it has risen without an explosion
        by = "not at all" if lowest == 0 else f"by {fall:.3g}, no more than it scatters"
        asked = "the loss the one that is trained on, do the parameters take gradients?"
        is_low = "" if more else "lr_min low enough, "
        return None, f"the loss never fell ({by}){more}: is {is_low}{asked}"
    is_falling = len(lrs) - 1 - lowest <= half and float(mean[-1] - mean[lowest]) <= scatter
    is_little = fall < _LITTLE * abs(float(mean[0]))
    if is_falling and (is_cut_off or (is_little and stopped == ALL_TAKEN)):
        by = f"by {fall:.3g} to {mean[lowest]:.4g} at lr {lrs[lowest]:.2g}"
        return None, f"the loss was still falling at the end, {by}{more}"
    steepest = _steepest(mean[: lowest + 1], half)
    then = "rising beyond"
    if lowest == len(lrs) - 1:
        then = "still falling where the sweep ended: a higher lr_max may suggest more"
    return lrs[steepest], (
        f"the loss falls fastest there: from {mean[0]:.4g} it comes down to {mean[lowest]:.4g} at "
        f"lr {lrs[lowest]:.2g}, {then}"
    )


def _more(stopped: str) -> str:
    """Return what would let the sweep see more; nothing where it saw the loss diverge."""
    if stopped.startswith(DATA_ENDED):
        return "; pass data that can be gone through again (a list, a DataLoader), or fewer steps"
    if stopped == INTERRUPTED:
        return "; let it run further"
    return "; raise lr_max" if stopped == ALL_TAKEN else ""


def _steepest(mean: Array, half: int) -> int:
    """Return where a curve falls fastest, by slopes over as many points as each is a mean of.

    Slopes from one point to the next are mostly noise, at the ends, where means are of fewer, most
    of all.
    """
    reach = min(max(half, 1), (len(mean) - 1) // 2)
    if not reach:
        return len(mean) - 1
    falls = mean[: -2 * reach] - mean[2 * reach :]
    return reach + int(np.argmax(falls))
