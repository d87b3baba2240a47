"""A matplotlib figure that notebooks show; only what draws imports it, for it needs matplotlib."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure outside pyplot, shown where it is the last value of a notebook's cell.

    Notebooks learn how to show matplotlib's figures when pyplot is imported, which whoever asks
    for a picture of a schedule need not have done.
    """

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()
