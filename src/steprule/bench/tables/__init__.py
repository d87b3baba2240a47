"""The tables, by the names that `--tables` takes."""

from __future__ import annotations

from collections.abc import Mapping

from steprule.bench.tables.clipping import CLIPPING
from steprule.bench.tables.epoch import EPOCH
from steprule.bench.tables.formats import FORMATS
from steprule.bench.tables.matrices import MATRICES
from steprule.bench.tables.memory import MEMORY
from steprule.bench.tables.mixes import MIXES
from steprule.bench.tables.scaling import SCALING
from steprule.bench.tables.startup import STARTUP
from steprule.bench.tables.steps import STEPS
from steprule.bench.tables.table import Job, Table
from steprule.bench.tables.zero_grad import ZERO_GRAD

__all__ = ["TABLES", "Job", "Table"]

TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        STEPS,
        EPOCH,
        STARTUP,
        MEMORY,
        ZERO_GRAD,
        MIXES,
        SCALING,
        CLIPPING,
        MATRICES,
        FORMATS,
    )
}
