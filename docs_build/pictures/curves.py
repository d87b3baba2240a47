"""Values over steps as a small SVG that stands on white and on black."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 420, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 14, 26
LINE, AXIS, TEXT = "#dd6b20", "#8793a1", "#77818e"
# With so few different values it is stairs, whose risers are upright.
_STAIRS = 12


def curve_picture(values: NDArray[np.float64], title: str) -> str:
    """Return the picture of values at steps 0, 1, 2 and so on.

    Args:
        values: one for each step.
        title: what a reader is told who does not see it.
    """
    y = values
    high = float(y.max()) or 1.0
    low = min(float(y.min()), 0.0)
    across = _LEFT + np.arange(len(y)) / max(len(y) - 1, 1) * (WIDTH - _LEFT - _RIGHT)
    down = HEIGHT - _BOTTOM - (y - low) / (high - low) * (HEIGHT - _BOTTOM - _TOP)
    is_stairs = len(np.unique(y)) <= _STAIRS
    pieces = [f"M{across[0]:.1f} {down[0]:.1f}"]
    for i in range(1, len(y)):
        if is_stairs:
            if down[i] != down[i - 1]:
                pieces.append(f"H{across[i]:.1f}V{down[i]:.1f}")
        else:
            pieces.append(f"L{across[i]:.1f} {down[i]:.1f}")
    if is_stairs:
        pieces.append(f"H{across[-1]:.1f}")
    floor = HEIGHT - _BOTTOM
    last, right = len(y) - 1, WIDTH - _RIGHT
    words = "".join(
        f'<text x="{x}" y="{y_}" text-anchor="{anchor}">{escape(word)}</text>'
        for x, y_, anchor, word in (
            (_LEFT - 6, _TOP + 4, "end", f"{high:.3g}"),
            (_LEFT - 6, floor + 4, "end", f"{low:.3g}"),
            (_LEFT, floor + 17, "middle", "0"),
            (right, floor + 17, "end", str(last)),
            ((_LEFT + right) / 2, floor + 17, "middle", "step"),
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img"><title>{escape(title)}</title>'
        f'<g fill="{TEXT}" font-family="sans-serif" font-size="12">{words}</g>'
        f'<path d="M{_LEFT} {_TOP}V{floor}H{right}M{_LEFT} {_TOP}h-4" fill="none" '
        f'stroke="{AXIS}"/>'
        f'<path d="{"".join(pieces)}" fill="none" stroke="{LINE}" stroke-width="2.2" '
        'stroke-linejoin="round"/></svg>'
    )
