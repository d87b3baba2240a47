"""The two surfaces that optimizers are drawn on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """A function of two numbers.

    Attributes:
        key: its name in files.
        title: its name in captions.
        formula: it, as text.
        value: of arrays x and y.
        gradient: likewise; two arrays.
        curvature: the second derivatives along x and along y.
        start: where paths begin.
        minimum: where the function is 0.
        window: left, right, bottom and top of the picture.
        levels: values at which contours are drawn.
    """

    key: str
    title: str
    formula: str
    value: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], tuple[Array, Array]]
    curvature: Callable[[Array, Array], tuple[Array, Array]]
    start: tuple[float, float]
    minimum: tuple[float, float]
    window: tuple[float, float, float, float]
    levels: tuple[float, ...]


def _rosenbrock(x: Array, y: Array) -> Array:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def _rosenbrock_gradient(x: Array, y: Array) -> tuple[Array, Array]:
    return -2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)


def _rosenbrock_curvature(x: Array, y: Array) -> tuple[Array, Array]:
    return 2 - 400 * (y - 3 * x**2), np.full_like(y, 200.0)


def _beale_terms(x: Array, y: Array) -> list[tuple[Array, Array, Array]]:
    """Each term, and its derivatives along x and y."""
    return [
        (a - x + x * y**n, y**n - 1, n * x * y ** (n - 1))
        for n, a in ((1, 1.5), (2, 2.25), (3, 2.625))
    ]


def _beale(x: Array, y: Array) -> Array:
    return np.asarray(sum(term**2 for term, _, _ in _beale_terms(x, y)))


def _beale_gradient(x: Array, y: Array) -> tuple[Array, Array]:
    terms = _beale_terms(x, y)
    along_x = sum(2 * term * by_x for term, by_x, _ in terms)
    along_y = sum(2 * term * by_y for term, _, by_y in terms)
    return np.asarray(along_x), np.asarray(along_y)


def _beale_curvature(x: Array, y: Array) -> tuple[Array, Array]:
    terms = _beale_terms(x, y)
    bends = (0.0 * y, 2 * x, 6 * x * y)
    along_x = sum(2 * by_x**2 for _, by_x, _ in terms)
    along_y = sum(
        2 * (by_y**2 + term * bend) for (term, _, by_y), bend in zip(terms, bends, strict=True)
    )
    return np.asarray(along_x), np.asarray(along_y)


SURFACES = (
    Surface(
        "rosenbrock",
        "Rosenbrock's valley",
        "(1 − x)² + 100 (y − x²)²",  # noqa: RUF001
        _rosenbrock,
        _rosenbrock_gradient,
        _rosenbrock_curvature,
        start=(-1.2, 1.0),
        minimum=(1.0, 1.0),
        window=(-1.9, 1.9, -0.7, 2.3),
        levels=(0.1, 0.5, 2, 6, 20, 60, 150, 350, 700, 1200),
    ),
    Surface(
        "beale",
        "Beale's function",
        "(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²",  # noqa: RUF001
        _beale,
        _beale_gradient,
        _beale_curvature,
        start=(1.0, 1.3),
        minimum=(3.0, 0.5),
        window=(-0.2, 4.2, -1.3, 1.8),
        levels=(0.05, 0.2, 0.6, 1.5, 4, 8, 14, 25, 60, 150, 400),
    ),
)
