"""The gallery of schedules: the code that makes each, and the picture of what it makes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from docs_build.pictures.curves import curve_picture
from docs_build.schedule_examples import CLASSES, COMPOSED, SHAPES, Example
from steprule import plotting

_HEAD = """\
# Pictures of all schedules

Each picture is made by the code above it while this page is built, with what
[`steprule.plot_schedule`](../reference/schedules.md) uses. In a terminal,
`steprule plot "cosine(0.1, 0, steps=90)" --text` draws one. [Schedules](../schedules.md) says what
each call computes, [the scheduler classes](../lr_scheduler.md) what they share with torch's.
"""


def files() -> dict[str, str | bytes]:
    """Return the page and its pictures."""
    lines = [_HEAD]
    made: dict[str, str | bytes] = {}
    for title, examples in (
        ("Shapes", SHAPES),
        ("Composed", COMPOSED),
        ("torch's scheduler classes", CLASSES),
    ):
        lines += [f"## {title}", ""]
        for example in examples:
            made[f"schedules/{example.key}.svg"] = picture_of(example)
            lines += _entry(example)
    made["schedules/gallery.md"] = "\n".join(lines)
    return made


def _entry(example: Example) -> Iterator[str]:
    alt = f"{example.title} over {example.steps} steps: {example.words}"
    yield from (f"### {example.title}", "", example.words[:1].upper() + example.words[1:] + ".", "")
    yield from ("```python", example.code, "```", "")
    yield from (f"![{alt}]({example.key}.svg)", "")


def picture_of(example: Example) -> str:
    """Run an example and draw what it made."""
    return curve_picture(values_of(example), f"{example.title} over {example.steps} steps")


def values_of(example: Example) -> NDArray[np.float64]:
    """Run an example and return its values at each step."""
    namespace: dict[str, Any] = {}
    exec(example.code, namespace)  # what the page shows is what is drawn
    if "seen" in namespace:
        return np.asarray(namespace["seen"], dtype=float)
    thing = namespace.get("scheduler", namespace.get("lr"))
    (curve, *_) = plotting.curves(thing, example.steps)
    return curve.values
