"""The bundled problem: a small network that tells classes of rows apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from steprule.problems.loading import seeded
from steprule.problems.problem import Problem

HIDDEN = 200
ROWS_AT_ONCE = 8192


def network(features: int, classes: int, seed: int) -> nn.Module:
    """Return the article's network, features-200-classes with a ReLU, drawn from `seed`."""
    with seeded(seed):
        return nn.Sequential(
            nn.Linear(features, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, classes),
        )


def classifier(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int, seed: int
) -> Problem:
    """Return the problem of telling `classes` classes apart by a small network.

    Args:
        name: of the data.
        train: rows of features (float32) and their classes (int64).
        test: as `train`; only looked at.
        classes: how many there are.
        seed: of the network's weights.

    Runs are ranked by the cross-entropy over all training rows: that is what an optimizer is asked
    to make small. The accuracy on the test rows stands beside it.
    """

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss, _ = _over_rows(model, *train)
        _, accuracy = _over_rows(model, *test)
        return {"train loss": loss, "test accuracy": accuracy}

    return Problem(
        model=network(train[0].shape[1], classes, seed),
        loss=_loss,
        data=train,
        evaluate=evaluate,
        name=name,
    )


def _loss(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return cross_entropy(model(x), y)


def _over_rows(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy."""
    loss = correct = 0.0
    for rows, labels in zip(
        torch.split(x, ROWS_AT_ONCE), torch.split(y, ROWS_AT_ONCE), strict=True
    ):
        scores = model(rows)
        loss += float(cross_entropy(scores, labels, reduction="sum"))
        correct += float((scores.argmax(dim=1) == labels).sum())
    return loss / len(x), correct / len(x)
