"""One self-contained page from a template, and what every page says: figures and versions."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import steprule
from steprule.checkpoints.replacing import replacing
from steprule.cli import charts
from steprule.cli.charts import Chart

# A line never ends between a number and its unit.
UNIT_GAP = "\N{NO-BREAK SPACE}"


def write(
    path: Path, template: str, drawn: Sequence[Chart], values: Mapping[str, Any]
) -> list[Path]:
    """Write the page `path`, and its charts as PNG files beside it.

    All is drawn before any of it is written, and each file takes its place as a whole.

    Args:
        path: the page; its folder exists.
        template: a file in `templates/` that extends `page.html.j2`.
        drawn: the charts, in the order of the page.
        values: the template's own.

    Returns:
        The PNG files.
    """
    environment = Environment(
        loader=PackageLoader("steprule.cli"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    text = environment.get_template(template).render(
        **values,
        charts=[(chart.key, chart.title, Markup(charts.svg(chart))) for chart in drawn],
        light=charts.PAPER.series,
        dark=charts.DARK_SERIES,
    )
    images = {path.with_name(f"{chart.key}.png"): charts.png(chart) for chart in drawn}
    for place, content in {**images, path: text.encode()}.items():
        with replacing(place) as file:
            file.write(content)
    return [*images]


def duration(seconds: float) -> str:
    """Return seconds in the unit that leaves one to three digits before the point."""
    if math.isnan(seconds):
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f}{UNIT_GAP}µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g}{UNIT_GAP}ms"
    return f"{seconds:.3g}{UNIT_GAP}s"


def size(count: int) -> str:
    """Return a number of bytes with thousands apart: formats differ by little, so none is lost."""
    return f"{count:,}{UNIT_GAP}B"


def short_size(count: int) -> str:
    """Return a number of bytes in the unit that leaves one to three digits before the point."""
    number = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g}{UNIT_GAP}{unit}"
        number /= 1000
    return f"{number:.4g}{UNIT_GAP}TB"


def versions() -> Mapping[str, str]:
    """Return the versions and the machine that the figures were made with."""
    return {
        "steprule": steprule.__version__,
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "llvmlite": version("llvmlite"),
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
