"""The kernel of a rule that tells rows from columns, and the workspace that it needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steprule.engines.cpu.axis_text import axis_source_of
from steprule.engines.cpu.runner import KernelRunner
from steprule.engines.engine import Leaf
from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernels.axis_values import each_values
from steprule.engines.native.control_block import Control
from steprule.language.form import Form
from steprule.language.passes import Pass


class AxisRunner(KernelRunner):
    """A kernel that takes a whole matrix at a time."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        super().__init__(form, leaves)
        recording = form.recording()
        of_rows, of_columns = (len(each_values(recording, each)) for each in ("row", "column"))
        lengths = [
            of_rows * rows + of_columns * columns
            for rows, columns in (p.shape for p in self.params)
        ]
        self._workspace = np.zeros(sum(lengths))
        starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
        self._spaces = self._workspace.ctypes.data + 8 * starts
        self._control[Control.WORKSPACE] = self._spaces.ctypes.data

    def _passes(self) -> Sequence[Pass]:
        return ()

    def _compile(self, leaf: Leaf) -> tuple[Library, Library]:
        title = f"the rule {self.form.rule.name!r} on matrices"
        source = axis_source_of(self.layout)
        library = library_for(
            source, ("prepare", "update"), arity=3, reorders_sums=True, title=title
        )
        return library, library

    def _chunk_of(self, size: int) -> int:
        return max(1, size)
