"""The path that an optimizer takes on two surfaces: pictures, and what is to be said of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from docs_build.pictures.kept import Kept
from docs_build.pictures.paths import LAST, OPTIONS, RATES
from docs_build.pictures.surfaces import SURFACES
from steprule.optimizer import Optimizer

_DECAY = "Weight decay would draw the path to the origin."
_VECTOR = "The two numbers are a vector with a 2 by 2 matrix of its own."
_AVERAGES = "The path is that of the averages, where the model is evaluated."
# What is to be said of them, for a reader who compares; options are told anyway.
REMARKS: Mapping[str, str] = {
    "adamw": _DECAY,
    "stableadamw": _DECAY,
    "grokadamw": _DECAY,
    "muon": (
        "The two numbers are a matrix of one row, whose orthogonalization is the direction of the "
        "step and nothing more: of what Muon does to matrices this shows little."
    ),
    "soap": _VECTOR,
    "shampoo": _VECTOR,
    "sophiag": (
        "There are no labels to draw on a surface: every tenth step `update_hessian` is given the "
        "root of the second derivatives along x and y, of which it takes the square."
    ),
    "asgd": "The path is that of the weights themselves, not of their average.",
    "adafactor": "The two numbers are a vector, of which nothing is factored.",
    "sparseadam": "The gradient is a sparse tensor that has both numbers in every step.",
    "schedulefreeadamw": _AVERAGES,
    "schedulefreesgd": _AVERAGES,
    "lbfgs": (
        "Each point is an iteration, with as many evaluations as its line search asked for "
        '(`line_search_fn="more_thuente"`).'
    ),
}


def path(name: str, cls: type[Optimizer], pictures: Mapping[str, Kept]) -> Iterator[str]:
    """Give the section."""
    yield from ("## Its path", "", '<div class="paths">')
    for surface in SURFACES:
        _, lr, _, value, steps = pictures[surface.key]
        alt = (
            f"Path of {cls.__name__} on {surface.title} from {surface.start}: after {steps} steps "
            f"with lr={lr:g} the value is {value:.2g}."
        )
        # An address as it is in a page of HTML, which is in the same folder as its picture.
        yield (
            f'<figure><img src="{name}_{surface.key}.svg" alt="{escape(alt)}" width="480" '
            f'height="380"><figcaption>{surface.title}, {steps} steps with lr = {lr:g}; value at '
            f"the end {value:.2g}.</figcaption></figure>"
        )
    yield from ("</div>", "", " ".join(_remarks(name, pictures)), "")


def _remarks(name: str, pictures: Mapping[str, Kept]) -> Iterator[str]:
    yield "From the ring to the cross, where the value is 0; a dot every few steps."
    tried = pictures[SURFACES[0].key][2]
    if tried > 1:
        yield (
            f"lr is the best of {tried} from {RATES[0]:g} to {RATES[-1]:g}, a range that is the "
            f"same for all optimizers: the one whose largest value over the last {LAST} steps is "
            "the lowest, among those whose path stays in the picture."
        )
    given = ", ".join(f"`{k}={v!r}`" for k, v in OPTIONS.get(name, {}).items())
    if given:
        yield f"Other options are the defaults, but for {given}."
    if name in REMARKS:
        yield REMARKS[name]
    yield (
        "Two numbers without noise tell how an optimizer moves, not how it trains a network "
        "([choosing one](../choosing.md))."
    )
