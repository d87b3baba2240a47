"""The data of a comparison: the bundled digits, or arrays from the user's own .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steprule.cli.errors import CommandError
from steprule.problems import Problem
from steprule.problems.classifier import classifier

TEST_SHARE = 0.2
WANTED = "expected arrays x (n, features) of numbers and y (n,) of whole numbers"


@dataclass(frozen=True)
class Dataset:
    """Standardised features (float32) and class indices (int64), split for training and test."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    classes: int

    def problem(self, seed: int = 0) -> Problem:
        """Return the bundled network on these data, its weights drawn from `seed`."""
        train, test = (self.x, self.y), (self.x_test, self.y_test)
        return classifier(self.name, train, test, self.classes, seed)


def load(path: Path | None) -> Dataset:
    """Return the dataset in the .npz file `path`, or scikit-learn's digits when it is None.

    Without `x_test` and `y_test`, a fixed fifth of the rows is kept for the test. Features are
    standardised by the mean and deviation of the training rows.

    Raises:
        CommandError: when the file cannot be read or its arrays are not what is expected.
    """
    if path is None:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return _dataset("Handwritten digits (scikit-learn)", {"x": x, "y": y})
    arrays = _read(path)
    try:
        return _dataset(path.name, arrays)
    except CommandError as error:
        raise CommandError(f"--data {path}: {error}") from error


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"--data {path}: one bare array, not an .npz file; {WANTED}")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise CommandError(f"--data {path}: {error.strerror or error}; {WANTED}") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CommandError(f"--data {path}: not a readable .npz file; {WANTED}") from error
    except MemoryError as error:
        raise CommandError(f"--data {path}: its arrays do not fit in memory") from error


def _dataset(name: str, arrays: Mapping[str, NDArray[Any]]) -> Dataset:
    for key in ("x", "y"):
        if key not in arrays:
            raise CommandError(f"no array {key!r} among {sorted(arrays) or 'none'}; {WANTED}")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise CommandError("x_test and y_test come together or not at all")
    x, y = _features("x", arrays["x"]), _labels("y", arrays["y"])
    _check_lengths("x", x, "y", y)
    if "x_test" in arrays:
        x_test, y_test = _features("x_test", arrays["x_test"]), _labels("y_test", arrays["y_test"])
        _check_lengths("x_test", x_test, "y_test", y_test)
        if x.shape[1] != x_test.shape[1]:
            raise CommandError(f"x has {x.shape[1]} features and x_test {x_test.shape[1]}")
    else:
        x, y, x_test, y_test = _split(x, y)
    classes = np.unique(y)
    if len(classes) < 2:
        raise CommandError(f"y has {len(classes)} class in its training rows; expected 2 or more")
    unseen = np.setdiff1d(y_test, classes)
    if len(unseen):
        raise CommandError(f"class {unseen[0]} is in the test rows but not in the training rows")
    train, test = _standardise(x, x_test)
    return Dataset(
        name=name,
        x=torch.from_numpy(train),
        y=torch.from_numpy(np.searchsorted(classes, y)),
        x_test=torch.from_numpy(test),
        y_test=torch.from_numpy(np.searchsorted(classes, y_test)),
        classes=len(classes),
    )


def _features(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    if values.dtype.kind not in "fiub":
        raise CommandError(f"{name} has dtype {values.dtype}; expected real numbers")
    if values.ndim != 2:
        raise CommandError(f"{name} has shape {values.shape}; expected two: (n, features)")
    if 0 in values.shape:
        raise CommandError(f"{name} is empty: shape {values.shape}")
    found = values.astype(np.float64)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, column = bad[0]
        raise CommandError(f"{name}[{row}, {column}] is {found[row, column]}; expected finite")
    return found


def _labels(name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    if values.ndim != 1:
        raise CommandError(f"{name} has shape {values.shape}; expected one: (n,)")
    if values.dtype.kind not in "fiub":
        raise CommandError(f"{name} has dtype {values.dtype}; expected whole numbers")
    with np.errstate(invalid="ignore"):
        found = values.astype(np.int64)
    bad = np.flatnonzero(found != values)
    if len(bad):
        raise CommandError(f"{name}[{bad[0]}] is {values[bad[0]]}; expected whole numbers")
    return found


def _check_lengths(x_name: str, x: NDArray[np.float64], y_name: str, y: NDArray[np.int64]) -> None:
    if len(x) != len(y):
        raise CommandError(f"{x_name} has {len(x)} rows and {y_name} {len(y)}")


def _split(x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    # The split does not move with --seed, so that figures of different seeds compare.
    order = np.random.default_rng(0).permutation(len(x))
    held = round(len(x) * TEST_SHARE)
    if held == 0:
        raise CommandError(f"x has {len(x)} rows; expected 3 or more, a fifth is held for the test")
    return x[order[held:]], y[order[held:]], x[order[:held]], y[order[:held]]


def _standardise(
    x: NDArray[np.float64], x_test: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = x.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1.0)
        pair = [((rows - x.mean(axis=0)) / scale).astype(np.float32) for rows in (x, x_test)]
    if not all(np.isfinite(values).all() for values in (deviation, *pair)):
        raise CommandError("the features are too large to standardise in float32")
    return pair[0], pair[1]
