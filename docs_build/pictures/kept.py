"""Pictures kept from build to build, under a hash of what they depend on."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from docs_build.pictures.drawing import contours, picture
from docs_build.pictures.paths import path_of
from docs_build.pictures.surfaces import SURFACES, Surface
from steprule.rules import OPTIMIZERS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".docs-cache"


def pictures_of(name: str) -> dict[str, tuple[str, float, int, float, int]]:
    """Return an optimizer's pictures by surface: SVG, lr, of how many, value at the end, steps."""
    kept = FOLDER / f"paths-{name}-{_digest(name)}.json"
    if kept.exists():
        found: dict[str, tuple[str, float, int, float, int]] = json.loads(kept.read_text("utf-8"))
        return found
    made = {surface.key: _drawn(name, surface) for surface in SURFACES}
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob(f"paths-{name}-*.json"):
        old.unlink(missing_ok=True)
    part = kept.with_suffix(f".{id(made)}.part")
    part.write_text(json.dumps(made), "utf-8")
    part.replace(kept)
    return made


def _drawn(name: str, surface: Surface) -> tuple[str, float, int, float, int]:
    path = path_of(name, surface)
    title = f"Path of {OPTIMIZERS[name].__name__} on {surface.title}"
    svg = picture(surface, _contours(surface), path, title)
    return svg, path.lr, path.tried, path.value, len(path.points) - 1


_known: dict[str, str] = {}


def _contours(surface: Surface) -> str:
    if surface.key not in _known:
        _known[surface.key] = contours(surface)
    return _known[surface.key]


def _digest(name: str) -> str:
    """Return a hash of the rule, of what draws it, and of the versions that compute."""
    cls: Callable[..., object] = OPTIMIZERS[name]
    own = Path(inspect.getfile(cls))
    files = [own, *sorted(Path(__file__).parent.glob("*.py"))]
    package = Path(sys.modules["steprule"].__file__ or "").parent
    files += sorted((package / "language").glob("*.py"))
    if name == "lbfgs":
        files += sorted(own.parent.glob("*.py"))
    digest = hashlib.sha256(f"{torch.__version__} {np.__version__}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
