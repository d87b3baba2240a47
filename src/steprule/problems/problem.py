"""Problem: what there is to train, and how it is judged."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steprule.problems.data import RowBatches, check_data, is_rows
from steprule.problems.errors import ProblemError as ProblemError
from steprule.problems.errors import kind_of

# Last words of figures that are better when greater: by these nothing can be ranked.
GREATER_IS_BETTER = frozenset(
    {"acc", "accuracy", "auc", "auroc", "bleu", "f1", "precision", "psnr", "recall", "ssim"}
)
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Problem:
    """A model with its loss and its data: what `steprule compare` and `find-lr` train.

    Args:
        model: a module with parameters that can be trained. Whoever trains takes a deep copy, so
            that each run begins with these weights; `loss` and `evaluate` are handed the copy.
        loss: called as ``loss(model, batch)``; returns the loss of the batch, a real tensor of
            one element. Moving the batch to a device is its work as well. Lists, dicts and tuples
            are copies, which it may take apart; tensors it must leave as they are.
        data: batches, gone through once an epoch: a list, a `DataLoader`, anything that can be
            iterated over again and again. A tuple of tensors, all of the same length, stands for
            rows: they are shuffled, and a batch is a tuple of some rows of each.
        evaluate: called as ``evaluate(model)`` without gradients, the model in `eval` mode, at the
            start and some twenty times in a run; returns a number or a dict of them. Runs are
            ranked by the number, by ``"loss"`` of a dict or, without that, by its first: smaller
            is better, and a first that is called "accuracy" or the like is refused. Those with
            "accuracy" in their names are shown in percent. None (default):
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
            raise ProblemError(f"model must be a torch.nn.Module, got {kind_of(self.model)}")
        if not any(param.requires_grad for param in self.model.parameters()):
            raise ProblemError("model has no parameter that requires a gradient")
        for name in ("loss", "evaluate"):
            value = getattr(self, name)
            if not callable(value) and not (name == "evaluate" and value is None):
                takes = "model, batch" if name == "loss" else "model"
                raise ProblemError(f"{name} must be a function of {takes}, got {kind_of(value)}")
        check_data(self.data)
        if not isinstance(self.name, str):
            raise ProblemError(f"name must be text, got {kind_of(self.name)}")

    def batches(self, batch_size: int = 64, seed: int = 0) -> Iterable[Any]:
        """Return the batches of an epoch, anew each time it is iterated over.

        Args:
            batch_size: rows a batch where `data` is a tuple of tensors; other data have batches
                of their own.
            seed: of the order of those rows; each pass has another order, the first of two calls
                with one seed the same.
        """
        return RowBatches(self.data, batch_size, seed) if is_rows(self.data) else self.data

    def copy_of_model(self) -> nn.Module:
        """Return a deep copy of the model.

        Raises:
            ProblemError: it can't be copied.
        """
        try:
            return copy.deepcopy(self.model)
        except Exception as error:
            raise ProblemError(
                f"model can't be copied, as every run needs its own ({kind_of(error)}: {error}); "
                "does it keep results of a computation?"
            ) from error

    def value(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the loss of a batch.

        Raises:
            ProblemError: it is no real tensor of one element that has a gradient.
        """
        loss = self.loss(model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
            raise ProblemError(
                f"loss must return a tensor of one element, got {kind_of(loss)}{shape}"
            )
        if loss.is_complex():
            raise ProblemError(
                "loss returned a complex number, and nothing says which of two is smaller: return "
                "a real one, as loss.abs()"
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise ProblemError("loss returned a tensor that hangs on no parameter: no gradient")
        return loss

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Return what `evaluate` says of `model`, the figure that ranks first; {} without it.

        Raises:
            ProblemError: it returned neither a number nor a dict of numbers, or one of which the
                greater is better stands where the smaller ranks first.
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
        if GREATER_IS_BETTER.intersection(_WORDS.findall(first.lower())[-1:]):
            raise ProblemError(
                f"evaluate gives {first!r} to rank by, and the smallest ranks first: put another "
                f"figure before it, as {{'error': 1 - ...}}, or add 'loss'"
            )
        return {first: figures.pop(first), **figures}
