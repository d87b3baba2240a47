"""Pictures kept from build to build, under a hash of what they depend on."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from docs_build.pictures.drawing import contours, picture
from docs_build.pictures.paths import beginning_of, path_of
from docs_build.pictures.surfaces import SURFACES, Surface
from steprule.rules import OPTIMIZERS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".docs-cache"
# SVG, lr, of how many, value at the end, steps.
Kept: TypeAlias = tuple[str, float, int, float, int]


def pictures_of(name: str) -> dict[str, Kept]:
    """Return an optimizer's pictures by surface."""
    kept = FOLDER / f"paths-{name}-{_digest(name)}.json"
    if kept.exists():
        found: dict[str, Kept] = json.loads(kept.read_text("utf-8"))
        return found
    made = {surface.key: _drawn(name, surface) for surface in SURFACES}
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob(f"paths-{name}-*.json"):
        old.unlink(missing_ok=True)
    part = kept.with_suffix(f".{id(made)}.part")
    part.write_text(json.dumps(made), "utf-8")
    part.replace(kept)
    return made


def _drawn(name: str, surface: Surface) -> Kept:
    path = path_of(name, surface)
    title = f"Path of {OPTIMIZERS[name].__name__} on {surface.title}"
    svg = picture(surface, _contours(surface), path, title)
    return svg, path.lr, path.tried, path.value, len(path.points) - 1


_known: dict[str, str] = {}


def _contours(surface: Surface) -> str:
    if surface.key not in _known:
        _known[surface.key] = contours(surface)
    return _known[surface.key]


@functools.cache
def _digest(name: str) -> str:
    """Return a hash of the rule, of what draws it, and of the first steps of its paths.

    Those change with whatever computes them (engines, operations, torch), wherever that stands.
    """
    cls: Callable[..., object] = OPTIMIZERS[name]
    files = [Path(inspect.getfile(cls)), *sorted(Path(__file__).parent.glob("*.py"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    for surface in SURFACES:
        digest.update(beginning_of(name, surface).tobytes())
    return digest.hexdigest()[:16]
