"""What a kernel is told: the words of its control block, which native steps write to as well."""

from __future__ import annotations

import enum


class Control(enum.IntEnum):
    """Word of the control block that holds the address (or count) of each table."""

    TENSORS = 0  # how many tensors
    GRADS = 1  # address of each gradient, 0 for none
    COLUMNS = 2  # addresses of param and slots, one row of tensors for each column
    COUNTS = 3  # addresses of the step counts and scalar slots, likewise
    GROUPS = 4  # index of each tensor's group
    NUMBERS = 5  # float64: one row of hyperparameters for each group
    FIRSTS = 6  # float64: 1 for a tensor never updated before
    SCALARS = 7  # float64: one row for each tensor, written by prepare, read by update
    CHUNKS = 8  # tensor, first element, number of elements of each chunk
    PARTIALS = 9  # float64: what each chunk adds to each reduction of a pass
    STARTS = 10  # each tensor's first chunk, and the end of the last one's
    ELEMENTS = 11  # float64: each tensor's number of elements, at least 1
    SQUARE_SUMS = 12  # float64: what square_sums.py finds of each gradient
    SUMS = 13  # float64: of each tensor, its part in each reduction of a pass, then the totals
    SHAPES = 14  # float64: rows of each tensor, then columns of each
    WORKSPACE = 15  # of each matrix, the address of room for the numbers of its rows and columns
    KEYS = 16  # what random bits know each tensor by
    ORIGINS = 17  # of each chunk, what they know its first element by
