"""What every kernel is given, by position: a few numbers, and tables on the device.

All kernels take all of them, so that one array of arguments serves all launches of a step.
"""

from __future__ import annotations

#: Whole numbers: how many tensors there are, and the first program's chunk.
NUMBERS = ("tensors", "first_chunk")
#: The tables, with what they hold (Triton's names of types).
TABLES = {
    "grads": "i64",  # address of each gradient, 0 for none
    "columns": "i64",  # addresses of param and arrays, one row of tensors for each column
    "counts": "i64",  # addresses of step counts and scalar slots, likewise
    "groups": "i64",  # the row of each tensor's group in `numbers`
    "numbers": "fp64",  # one row of numbers for each group
    "firsts": "fp64",  # 1 for a tensor that was never updated
    "scalars": "fp64",  # one row for each tensor
    "chunks": "i64",  # tensor, first element, number of elements of each chunk
    "keys": "i64",  # what random bits know each tensor by
    "origins": "i64",  # of each chunk, what they know its first element by
    "shapes": "fp64",  # rows of each tensor, then columns of each
    "partials": "fp64",  # what each chunk adds to each reduction of a pass
    "starts": "i64",  # each tensor's first chunk, and the end of the last one's
    "elements": "fp64",  # each tensor's number of elements, at least 1
    "sums": "fp64",  # of each reduction, each tensor's part; then the totals
    "square_sums": "fp64",  # of each gradient
    "spaces": "i64",  # addresses of room for the numbers of each matrix's rows and columns; parts
    "strips": "i64",  # matrix and first column of each strip
    "found_inf": "fp32",  # one number; with any but 0 the step is not taken
}
ARGUMENTS = (*NUMBERS, *TABLES)


def signature() -> dict[str, str]:
    """Return the type of each argument, as Triton's compiler wants it."""
    pointers = {name: f"*{kind}" for name, kind in TABLES.items()}
    return {**dict.fromkeys(NUMBERS, "i64"), **pointers}


def head(name: str) -> str:
    """Return the first line of a kernel."""
    return f"def {name}({', '.join(ARGUMENTS)}):"
