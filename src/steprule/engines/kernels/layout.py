"""What a kernel is compiled for, and the names that its text has for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from steprule.cached import cached_property
from steprule.formats import BlockFormat, Column, ElementFormat, Format
from steprule.language.form import Form
from steprule.language.recording import Recording, Value


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for: a form, and how each of its arrays is stored.

    ``numbers`` are what random bits know the arrays by, ``count`` is the step count that these
    depend on, if there are any. Where kernels over elements can't reach it, ``has_step_in_row``:
    it is the last number of a tensor's row of scalars. If ``is_cut``, they are shards, and random
    bits know an element by its number in the whole.
    """

    form: Form
    formats: tuple[tuple[str, Format], ...]
    count_dtypes: tuple[tuple[str, str], ...]
    compute: str
    numbers: tuple[tuple[str, int], ...] = ()
    count: str | None = None
    has_step_in_row: bool = False
    is_cut: bool = False

    @cached_property
    def block(self) -> int:
        """How many elements are taken at a time because they share scales; 1 if none do."""
        blocks = [f.block for _, f in self.formats if isinstance(f, BlockFormat)]
        return max(blocks, default=1)

    @property
    def index(self) -> str:
        """The variable of an element's number in its chunk."""
        return "i" if self.block == 1 else "at"

    def has_blocks(self, name: str) -> bool:
        """Tell whether the elements of an array share scales."""
        return isinstance(dict(self.formats)[name], BlockFormat)

    def element_format(self, name: str) -> ElementFormat:
        """Return the format of an array without blocks."""
        storage = dict(self.formats)[name]
        assert isinstance(storage, ElementFormat)
        return storage


def column_names(array: str, storage: Format | ElementFormat | BlockFormat) -> list[str]:
    """Return the names of the address variables of one array."""
    return [
        f"{array}_{column.part}_address" if column.part else f"{array}_address"
        for column in storage.columns
    ]


def scalar_row(recording: Recording) -> list[Value]:
    """Return the scalar quantities that ``prepare`` leaves for ``update``, in table order."""
    return recording.scalars_for_arrays()


def array_names(recording: Recording) -> dict[Value, str]:
    """Return the names, in a loop over elements, of what is in a tensor's row of scalars."""
    row = scalar_row(recording)
    return {v: f"x{v.index}" if v.is_array else f"s{v.index}" for v in row}


def matrix_names(recording: Recording) -> dict[Value, str]:
    """Return the names of the columns that matrix operations work in, by their results."""
    return {x.result: f"matrix_{i}" for i, x in enumerate(recording.matrix_operations)}


def columns_with_offsets(layout: Layout) -> list[tuple[str, str]]:
    """Return the variable of each column but the gradient's, and how far element ``start`` is."""
    return [
        (variable, _offset(column))
        for name, storage in layout.formats
        if name != "grad"
        for variable, column in zip(column_names(name, storage), storage.columns, strict=True)
    ]


def grad_offset(layout: Layout) -> str:
    """Return how far element ``start`` of a gradient is from its first one."""
    (column,) = dict(layout.formats)["grad"].columns
    return _offset(column)


def _offset(column: Column) -> str:
    # A complex number is two elements.
    size = column.dtype.to_real().itemsize
    if column.elements == 1:
        return f"{size} * start"
    return f"{size} * (start >> {column.elements.bit_length() - 1})"


def in_flushed_mode(layout: Layout, head: str, body: list[str]) -> str:
    """Return a function whose body runs with denormals as zero, unless the rule keeps them."""
    flushes = not layout.form.rule.keeps_denormals
    return "\n".join(
        [
            head,
            *(["    mode = flush_denormals()"] if flushes else []),
            *body,
            *(["    restore_denormals(mode)"] if flushes else []),
            "    return 0",
        ]
    )


def indented(lines: Iterable[str], by: int) -> list[str]:
    """Indent lines by so many spaces."""
    return [" " * by + line for line in lines]
