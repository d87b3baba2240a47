"""A path on a surface as a small SVG that stands on white and on black."""

from __future__ import annotations

from html import escape

import numpy as np
from numpy.typing import NDArray

from docs_build.pictures.paths import Path
from docs_build.pictures.surfaces import Surface

WIDTH, HEIGHT = 480, 380
# Middle tones, which are told from a page in either scheme.
CONTOUR, PATH, MARK = "#8793a1", "#dd6b20", "#2f86d6"


def contours(surface: Surface) -> str:
    """Return the surface's contours as one SVG path."""
    from contourpy import contour_generator

    left, right, bottom, top = surface.window
    x, y = np.linspace(left, right, 161), np.linspace(bottom, top, 161)
    grid = np.meshgrid(x, y)
    lines = contour_generator(x, y, surface.value(*grid))
    return "".join(
        _as_path(_placed(surface, np.asarray(line)), tolerance=0.35)
        for level in surface.levels
        for line in lines.lines(level)
    )


def picture(surface: Surface, contour: str, path: Path, title: str) -> str:
    """Return the picture of a path.

    Args:
        surface: on which it is.
        contour: its contours, as :func:`contours` gives them.
        path: the path.
        title: what a reader is told who does not see it.
    """
    points = _placed(surface, path.points)
    inside = np.all(np.isfinite(points), axis=1)
    points = np.clip(points[inside], -2000, 3000)
    start, end = points[0], points[-1]
    minimum = _placed(surface, np.array([surface.minimum]))[0]
    few = points[:: max(len(points) // 40, 1)]
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in few)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<clipPath id="c"><rect width="{WIDTH}" height="{HEIGHT}" rx="6"/></clipPath>'
        f'<g clip-path="url(#c)" fill="none" stroke-linejoin="round" stroke-linecap="round">'
        f'<path d="{contour}" stroke="{CONTOUR}" stroke-opacity=".6"/>'
        f'<path d="{_cross(minimum)}" stroke="{MARK}" stroke-width="3"/>'
        f'<path d="{_as_path(points, tolerance=0.15)}" stroke="{PATH}" stroke-width="1.8"/>'
        f'<path d="{dots}" stroke="{PATH}" stroke-width="4.5"/>'
        f'<circle cx="{start[0]:.1f}" cy="{start[1]:.1f}" r="6" stroke="{MARK}" '
        'stroke-width="2.5"/>'
        f'<circle cx="{end[0]:.1f}" cy="{end[1]:.1f}" r="4.5" fill="{PATH}"/>'
        f"</g>"
        f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="6" fill="none" '
        f'stroke="{CONTOUR}" stroke-opacity=".5"/>'
        "</svg>"
    )


def _placed(surface: Surface, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points of the surface in the picture's units."""
    left, right, bottom, top = surface.window
    across = (points[:, 0] - left) / (right - left) * WIDTH
    down = (top - points[:, 1]) / (top - bottom) * HEIGHT
    return np.stack([across, down], axis=1)


def _cross(at: NDArray[np.float64]) -> str:
    x, y = at
    return f"M{x - 6:.1f} {y - 6:.1f}l12 12m-12 0l12 -12"


def _as_path(points: NDArray[np.float64], tolerance: float) -> str:
    """Return a line through points, without those that it hardly bends at."""
    kept = points[_simplified(points, tolerance)]
    rounded = np.round(kept, 1)
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in rounded)


def _simplified(points: NDArray[np.float64], tolerance: float) -> NDArray[np.intp]:
    """Return the indices that Ramer, Douglas and Peucker keep."""
    kept = {0, len(points) - 1}
    pieces = [(0, len(points) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        a, b = points[first], points[last]
        between = points[first + 1 : last]
        length = float(np.hypot(*(b - a)))
        if length == 0:
            distances = np.hypot(*(between - a).T)
        else:
            (dx, dy), (px, py) = b - a, (between - a).T
            distances = np.abs(dx * py - dy * px) / length
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = first + 1 + farthest
            kept.add(middle)
            pieces += [(first, middle), (middle, last)]
    return np.array(sorted(kept))
