"""LambdaLR and MultiplicativeLR: the user's own function of the epoch."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.function_schedule import FunctionSchedule
from steprule.lr_scheduler.pure import AbsoluteLR, PureLR
from steprule.schedules import Schedule

Function = Callable[[int], float]
PROBES = (0, 1, 2, 5, 10, 30, 100, 1000)


class _FunctionLR(PureLR):
    """Holds one function for each group; a group added later follows the last one's."""

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Function | list[Function],
        last_epoch: int = -1,
        verbose: Any = False,
        **options: Any,
    ) -> None:
        groups.check_optimizer(optimizer)
        # Both messages begin with torch's words, which people's code may look for.
        count = len(optimizer.param_groups)
        if isinstance(lr_lambda, (list, tuple)) and len(lr_lambda) != count:
            raise ValueError(
                f"Expected {count} lr_lambdas, but got {len(lr_lambda)}: lr_lambda must be one "
                f"function, or one for each of the optimizer's {count} groups"
            )
        self.lr_lambdas: list[Function] = groups.per_group("lr_lambda", optimizer, lr_lambda)
        for function in self.lr_lambdas:
            if not callable(function):
                raise TypeError(
                    f"lr_lambda should be a function, but got {type(function).__name__}: a "
                    f"function of the epoch is needed, and this is {function!r}"
                )
        super().__init__(optimizer, last_epoch, verbose, **options)

    def _factors(self, epoch: int) -> list[float]:
        """Return each group's factor. Groups that share a plain function share one call of it."""
        functions = self.lr_lambdas
        first = functions[0]
        if type(first) is types.FunctionType and functions.count(first) == len(functions):
            return [first(epoch)] * len(functions)
        return [function(epoch) for function in functions]

    def _say_what_is_no_number(self, epoch: Any) -> None:
        for index, function in enumerate(self.lr_lambdas):
            factor = function(epoch)
            if groups.number_or_none(factor) is None:
                raise TypeError(
                    f"lr_lambda must return a number, got {factor!r} at epoch {epoch} for group "
                    f"{index}"
                )

    def _adopt(self) -> None:
        super()._adopt()
        self._share_last()

    def _share_last(self) -> None:
        """Give groups added later the last group's function."""
        missing = len(self.base_lrs) - len(self.lr_lambdas)
        self.lr_lambdas += self.lr_lambdas[-1:] * missing

    def state_dict(self) -> dict[str, Any]:
        """As the base class; of the functions, what can be saved as plain values.

        A callable object is saved by its attributes, as in torch. A function cannot be saved:
        its values at a few epochs are kept instead, so that loading can tell whether the
        function of the resumed run is another one.
        """
        state = super().state_dict()
        state["lr_lambdas"] = [_attributes(function) for function in self.lr_lambdas]
        state["_lambda_probes"] = [
            _probe(function, {*PROBES, self.last_epoch}) for function in self.lr_lambdas
        ]
        return state

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(state_dict, kept | {"lr_lambdas", "_lambda_probes"})
        self._share_last()  # the state may be of a run with more groups
        for function, saved in zip(self.lr_lambdas, state_dict.get("lr_lambdas", ()), strict=False):
            if saved and "lr_lambdas" not in kept:
                vars(function).update(groups.copied(saved))
        if "lr_lambdas" not in kept:
            self._compare(state_dict.get("_lambda_probes", ()))

    def _compare(self, saved: Any) -> None:
        """Warn when a function gives other values than the saved run's did."""
        for index, (function, probes) in enumerate(zip(self.lr_lambdas, saved, strict=False)):
            now = _probe(function, probes)
            for epoch, value in probes.items():
                if now.get(epoch) != value:
                    warnings.warn(
                        f"lr_lambda of group {index} is not the one of the saved run: at epoch "
                        f"{epoch} it gives {now.get(epoch)!r}, and gave {value!r}. Functions are "
                        'not saved; pass keep=["lr_lambdas"] if the change is meant.',
                        UserWarning,
                        stacklevel=4,
                    )
                    return


class LambdaLR(_FunctionLR, AbsoluteLR):
    """Set each lr to base_lr * lr_lambda(epoch).

    Args:
        optimizer: any `torch.optim.Optimizer`.
        lr_lambda: function from the epoch (first 0) to a factor, or one for each group.
        last_epoch, verbose, options: as `LRScheduler`.

    Raises:
        ValueError: not as many functions as groups.
        TypeError: `lr_lambda` is not a function.
    """

    def _closed(self, epoch: Any) -> list[float]:
        factors = self._factors(epoch)
        return [base * factor for base, factor in zip(self._bases, factors, strict=False)]

    def _pure(self, index: int, base: float) -> Schedule:
        return FunctionSchedule(self.lr_lambdas[index], base)


class MultiplicativeLR(_FunctionLR):
    """Multiply each lr by lr_lambda(epoch), from epoch 1 on.

    Args: as `LambdaLR`; the factor is from the epoch before to this one.
    """

    # torch has no closed form here: `step(epoch)` multiplies once, whatever the epoch.
    _get_closed_form_lr = None  # type: ignore[assignment]

    def _closed(self, epoch: Any) -> list[float]:
        result = []
        for base, function in zip(self._bases, self.lr_lambdas, strict=False):
            lr = base
            for number in range(1, epoch + 1):
                lr = lr * function(number)
            result.append(lr)
        return result

    def _next(self, lrs: list[float]) -> list[float]:
        if self._is_initial:
            return lrs
        factors = self._factors(self.last_epoch)
        return [lr * factor for lr, factor in zip(lrs, factors, strict=False)]

    def _pure(self, index: int, base: float) -> Schedule:
        return FunctionSchedule(self.lr_lambdas[index], base, product=True)


def _attributes(function: Function) -> dict[str, Any] | None:
    """Return what a callable object holds; None for a function, which holds nothing to save."""
    if isinstance(function, (types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return None
    attributes: dict[str, Any] | None = groups.copied(getattr(function, "__dict__", None))
    return attributes


def _probe(function: Function, epochs: Any) -> dict[int, float]:
    """Return a plain function's values, if any; objects may count their calls: leave them."""
    if not isinstance(function, types.FunctionType):
        return {}
    return {
        epoch: value
        for epoch in sorted(epochs)
        if (value := _value_or_none(function, epoch)) is not None
    }


def _value_or_none(function: Function, epoch: int) -> float | None:
    try:
        return float(function(epoch))
    except Exception:  # noqa: BLE001
        # A table of 90 epochs has no value at 1000, and that is no fault.
        return None
