"""The kernels of a rule that tells rows from columns, and the workspace that they need."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steprule.distributed.regions import Region
from steprule.engines.engine import Leaf
from steprule.engines.gpu.axis_text import (
    ROWS,
    STRIP,
    axis_update_source,
    column_reductions,
    columns_source,
    has_array_reductions,
    level_count,
    level_source,
    rows_source,
    slots_source,
)
from steprule.engines.gpu.programs.streams import on_device
from steprule.engines.gpu.runner import TritonRunner
from steprule.engines.kernels.axis_values import each_values
from steprule.engines.stages import Stages
from steprule.language.form import Form
from steprule.language.passes import Pass


class AxisTritonRunner(TritonRunner):
    """The kernels of a form for matrices, level after level."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        recording = form.recording()
        self._levels = range(level_count(recording))
        self._reads = [has_array_reductions(recording, k) for k in self._levels]
        self._of_columns = [len(column_reductions(recording, k)) for k in self._levels]
        super().__init__(form, leaves)

    def _passes(self) -> Sequence[Pass]:
        return ()

    def _chunks_of(
        self, sizes: Sequence[int], regions: Sequence[Region | None]
    ) -> list[tuple[int, int, int]]:
        """Return chunks of a few whole rows."""
        return [
            (i, first * columns, min(ROWS, rows - first) * columns)
            for i, (rows, columns) in enumerate(param.shape for param in self.params)
            for first in range(0, rows, ROWS)
        ]

    def _make_device_tables(self) -> None:
        super()._make_device_tables()
        recording = self.form.recording()
        shapes = [tuple(param.shape) for param in self.params]
        of_rows, of_columns = (len(each_values(recording, each)) for each in ("row", "column"))
        most = max(self._of_columns)
        sizes = [of_rows * rows + of_columns * columns for rows, columns in shapes]
        parts = [-(-rows // ROWS) * most * columns for rows, columns in shapes]
        self._workspace = torch.zeros(
            max(1, sum(sizes) + sum(parts)), dtype=torch.float64, device=self.device
        )
        self._tables.kept(self._workspace)
        starts = np.cumsum([0, *sizes, *parts[:-1]]) * 8 + self._workspace.data_ptr()
        self._tables.put("spaces", starts)
        counts = [-(-rows // ROWS) for rows, _ in shapes]
        self._tables.put("starts", np.cumsum([0, *counts]))
        strips = [(i, c) for i, (_, n) in enumerate(shapes) for c in range(0, n, STRIP)]
        self._tables.put("strips", strips)
        self._strip_count = len(strips)
        self._tables.add("partials", self._chunk_count * len(recording.tensor_operations))

    def note(self) -> str:
        room = self._workspace.nbytes / 1024
        return f"{super().note()}, and {room:.1f} KiB for the numbers of rows and columns"

    def _make_tables_of_passes(self, most: int) -> None:
        """Have them from the start: chunks are rows here."""

    def _kernel_names(self) -> list[str]:
        names = [name for name in super()._kernel_names() if name == "prepare"]
        for k in self._levels:
            names += [f"rows_{k}"] * self._reads[k] + [f"columns_{k}"] * bool(self._of_columns[k])
            names.append(f"finish_{k}")
        return [*names, "update", "slots"]

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        yield from ()
        with torch.no_grad(), on_device(self.device):
            for k in self._levels:
                if self._reads[k]:
                    self._launch(f"rows_{k}", self._chunk_count)
                if self._of_columns[k]:
                    self._launch(f"columns_{k}", self._strip_count)
                self._launch(f"finish_{k}", len(self.params))
            self._launch("update", self._chunk_count)
            self._launch("slots", len(self.params))

    def _source(self, name: str) -> str:
        kind, _, number = name.rpartition("_")
        levels = {"rows": rows_source, "columns": columns_source, "finish": level_source}
        if kind in levels:
            return levels[kind](self.variant, int(number))
        plain = {"update": axis_update_source, "slots": slots_source}
        return plain[name](self.variant) if name in plain else super()._source(name)
