"""The data of a problem: batches as they come, or rows that are shuffled into batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.problems.errors import ProblemError, kind_of

BATCHES_OR_ROWS = "batches (a list, a DataLoader) or a tuple of tensors"

MOST_ROWS_IN_A_LIST = 3


class RowBatches:
    """Rows of tensors in batches, in another order each pass."""

    def __init__(self, rows: Any, batch_size: int, seed: int) -> None:
        self.rows: tuple[Tensor, ...] = tuple(rows)
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.rows[0]) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.randperm(len(self.rows[0]), generator=self.generator)
        for chosen in torch.split(order, self.batch_size):
            yield tuple(tensor[chosen.to(tensor.device)] for tensor in self.rows)


def is_rows(data: Any) -> bool:
    """Tell whether data are rows, which have yet to be made batches of."""
    return isinstance(data, tuple) and bool(data) and all(isinstance(d, Tensor) for d in data)


def check_data(data: Any) -> None:
    """Refuse what can't be gone through epoch after epoch.

    Raises:
        ProblemError: the message says what it is, and what is expected.
    """
    if is_rows(data):
        lengths = [len(tensor) if tensor.ndim else 0 for tensor in data]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ProblemError(f"data: tensors of one length of 1 or more, got {lengths}")
    elif isinstance(data, (Tensor, str, Mapping)) or not hasattr(data, "__iter__"):
        raise ProblemError(f"data must be {BATCHES_OR_ROWS}, got {kind_of(data)}")
    elif hasattr(data, "__next__"):
        raise ProblemError(
            f"data is used up after one pass ({kind_of(data)}); give a list, a DataLoader "
            "or an object whose __iter__ begins anew"
        )
    elif isinstance(data, tuple) and any(isinstance(one, np.ndarray) for one in data):
        raise ProblemError("data: rows must be tensors, got NumPy arrays: use torch.from_numpy")
    elif _are_rows_in_a_list(data):
        raise ProblemError(
            "data: a list is of batches, and these tensors of one length and different shapes "
            "look like rows: give a tuple, (x, y)"
        )


def _are_rows_in_a_list(data: Any) -> bool:
    """Tell whether a list is `[x, y]`: a few tensors of one length, but of different shapes.

    Many may be batches of sequences, which differ in length from one to the next.
    """
    if not isinstance(data, list) or not 2 <= len(data) <= MOST_ROWS_IN_A_LIST:
        return False
    if not all(isinstance(one, Tensor) and one.ndim for one in data):
        return False
    return len({len(one) for one in data}) == 1 and len({one.shape[1:] for one in data}) > 1
