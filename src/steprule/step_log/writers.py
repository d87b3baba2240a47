"""The ways in which a writer takes numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

Write: TypeAlias = Callable[[Mapping[str, float], int], object]


class TakesScalars(Protocol):
    """TensorBoard's writer, and those like it."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> object: ...


class TakesMetrics(Protocol):
    """Comet, MLflow, Lightning's loggers."""

    def log_metrics(self, values: Any, /, *, step: int) -> object: ...


class TakesLogs(Protocol):
    """A run of Weights & Biases."""

    def log(self, values: Any, /, *, step: int) -> object: ...


Writer: TypeAlias = (
    TakesScalars | TakesMetrics | TakesLogs | Callable[[dict[str, float], int], object]
)


def write_to(writer: Any) -> Write:
    """Return what hands numbers by tag, and the step, to a writer.

    Raises:
        TypeError: it is none that is known.
    """
    if isinstance(writer, logging.Logger):
        raise TypeError(
            "writer is a logging.Logger, which takes text: pass a function, "
            "lambda values, step: logger.info('%s %s', step, values)"
        )
    if callable(getattr(writer, "add_scalar", None)):  # TensorBoard, tensorboardX, ClearML

        def add_scalars(values: Mapping[str, float], step: int) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        return add_scalars
    for name in ("log_metrics", "log"):  # Comet, MLflow, Lightning's loggers; Weights & Biases
        if callable(getattr(writer, name, None)):
            return lambda values, step: getattr(writer, name)(dict(values), step=step)
    if callable(writer):
        return lambda values, step: writer(dict(values), step)
    raise TypeError(
        "writer must have add_scalar(tag, value, step), log_metrics(dict, step=) or "
        f"log(dict, step=), or be a function of a dict and the step, got {type(writer).__name__}"
    )
