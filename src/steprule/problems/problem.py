"""Problem: what there is to train, and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class ProblemError(Exception):
    """A problem that cannot be made; the message is one line and says what is expected."""


@dataclass(frozen=True)
class Problem:
    """A model with its loss and its data: what `steprule compare` and `find-lr` train.

    Args:
        model: a module with parameters that can be trained. Whoever trains takes a deep copy, so
            that each run begins with these weights; `loss` and `evaluate` are handed the copy.
        loss: called as ``loss(model, batch)``; returns the loss of the batch, a tensor of one
            element. Moving the batch to a device is its work as well.
        data: batches, gone through once an epoch: a list, a `DataLoader`, anything that can be
            iterated over again and again. A tuple of tensors, all of the same length, stands for
            rows: they are shuffled, and a batch is a tuple of some rows of each.
        evaluate: called as ``evaluate(model)`` without gradients, the model in `eval` mode, at the
            start and some twenty times in a run; returns a number or a dict of them. Runs are
            ranked by the number, by ``"loss"`` of a dict or, without that, by its first: smaller
            is better. Those with "accuracy" in their names are shown in percent. None (default):
            runs are ranked by the loss of their last batches.
        name: what pages call it.

    Raises:
        ProblemError: an argument that is none of these; the message names it.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    data: Iterable[Any]
    evaluate: Callable[[nn.Module], float | Mapping[str, float]] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ProblemError(f"model must be a torch.nn.Module, got {_kind(self.model)}")
        if not any(param.requires_grad for param in self.model.parameters()):
            raise ProblemError("model has no parameter that requires a gradient")
        for name in ("loss", "evaluate"):
            value = getattr(self, name)
            if not callable(value) and not (name == "evaluate" and value is None):
                takes = "model, batch" if name == "loss" else "model"
                raise ProblemError(f"{name} must be a function of {takes}, got {_kind(value)}")
        if _is_rows(self.data):
            lengths = [len(tensor) if tensor.ndim else 0 for tensor in self.data]
            if len(set(lengths)) > 1 or not lengths[0]:
                raise ProblemError(f"data: tensors of one length of 1 or more, got {lengths}")
        elif isinstance(self.data, Tensor) or not hasattr(self.data, "__iter__"):
            raise ProblemError(
                f"data must be batches (a list, a DataLoader) or a tuple of tensors, "
                f"got {_kind(self.data)}"
            )
        elif hasattr(self.data, "__next__"):
            raise ProblemError(
                f"data is used up after one pass ({_kind(self.data)}); give a list, a DataLoader "
                "or an object whose __iter__ begins anew"
            )
        if not isinstance(self.name, str):
            raise ProblemError(f"name must be text, got {_kind(self.name)}")

    def batches(self, batch_size: int = 64, seed: int = 0) -> Iterable[Any]:
        """Return the batches of an epoch, anew each time it is iterated over.

        Args:
            batch_size: rows a batch where `data` is a tuple of tensors; other data have batches
                of their own.
            seed: of the order of those rows; each pass has another order, the first of two calls
                with one seed the same.
        """
        return RowBatches(self.data, batch_size, seed) if _is_rows(self.data) else self.data

    def value(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch.

        Raises:
            ProblemError: it is no tensor of one element that has a gradient.
        """
        loss = self.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise ProblemError(
                f"loss must return a tensor of one element, got {_kind(loss)}{shape}"
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ProblemError("loss returned a tensor that hangs on no parameter: no gradient")
        return loss

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Return what `evaluate` says of `model`, the figure that ranks first; {} without it.

        Raises:
            ProblemError: it returned neither a number nor a dict of numbers.
        """
        if self.evaluate is None:
            return {}
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with torch.no_grad():
                found: Any = self.evaluate(model)
        finally:
            for module, training in modes.items():
                module.training = training
        named = dict(found) if isinstance(found, Mapping) else {"loss": found}
        try:
            figures = {str(name): float(value) for name, value in named.items()}
        except (TypeError, ValueError, RuntimeError):
            figures = {}
        if not figures:
            raise ProblemError(f"evaluate must return a number or a dict of them, got {found!r}")
        first = "loss" if "loss" in figures else next(iter(figures))
        return {first: figures.pop(first), **figures}


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


def _is_rows(data: Any) -> bool:
    return isinstance(data, tuple) and bool(data) and all(isinstance(d, Tensor) for d in data)


def _kind(value: Any) -> str:
    return type(value).__name__
