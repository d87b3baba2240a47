"""`--schedule`: one shape of the learning rate for every optimizer, scaled to each one's lr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from steprule.cli.errors import CommandError, unreadable


@dataclass(frozen=True)
class RateSchedule:
    """A schedule or a scheduler by its text, and the shape that it stands for.

    Attributes:
        text: as it was typed.
        shape: what it says; only its course counts, not its height.
    """

    text: str
    shape: Any

    def factors(self, steps: int | None) -> list[float]:
        """Return by what the lr is multiplied at each of `steps` steps: 1 at the peak.

        Raises:
            CommandError: the number of steps is not known, or there is no peak to scale to.
        """
        from steprule import plotting

        if steps is None:
            raise CommandError(
                "--schedule counts steps, and how many there will be is not known: give --steps"
            )
        try:
            values = plotting.curves(self.shape, steps)[0].values
        except (TypeError, ValueError) as error:
            raise CommandError(f"--schedule {self.text!r}: {error}") from error
        peak = float(np.max(values))
        if not np.all(np.isfinite(values)) or peak <= 0 or np.min(values) < 0:
            raise CommandError(
                f"--schedule {self.text!r}: expected finite values of 0 or more, not all 0, over "
                f"{steps} steps; got {np.min(values):g} to {peak:g}"
            )
        return [float(value) / peak for value in values]


def parse_rate_schedule(text: str | None) -> RateSchedule | None:
    """Read a schedule, `cosine(1, 0, steps=500).warmup(50)`, or a scheduler, `StepLR:step_size=30`.

    Raises:
        CommandError: it is neither; the message has the column.
    """
    from steprule.lr_scheduler.parse import looks_like_scheduler, parse_scheduler
    from steprule.schedules import ParseError, parse

    if text is None:
        return None
    try:
        shape = parse_scheduler(text, [1.0]) if looks_like_scheduler(text) else parse(text)
    except ParseError as error:
        raise unreadable(f"--schedule {text!r}", error) from error
    return RateSchedule(text.strip(), shape)
