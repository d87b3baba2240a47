"""`--lr-sweep`: the same training with several learning rates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steprule.cli.contenders import Contender
from steprule.cli.runs import Run
from steprule.cli.training import Settings
from steprule.cli.trials import Trial, one_run

SWEPT = 30


def sweep_rates(lr: float, count: int) -> list[float]:
    """Return `count` learning rates at equal ratios, from a thirtieth of `lr` to thirty of it."""
    if count == 1:
        return [lr]
    return [float(rate) for rate in np.geomspace(lr / SWEPT, lr * SWEPT, count)]


def sweep(
    contender: Contender,
    settings: Settings,
    seed: int,
    count: int,
    *,
    trials: list[Trial],
    on_step: Callable[[Run], None],
) -> None:
    """Train with several learning rates, one after the other; what is done goes to `trials`."""
    for rate in sweep_rates(contender.lr or 1.0, count):
        run = one_run(contender.having(lr=rate), settings, seed, on_step, None)
        trials.append(Trial(rate, None, run.value, run.end))
