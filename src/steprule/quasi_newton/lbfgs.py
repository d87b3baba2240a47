"""LBFGS: a drop-in for ``torch.optim.LBFGS`` without its warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor

from steprule.engines.uninterrupted import uninterrupted
from steprule.optimizer import Optimizer, ParamsT, uncompiled
from steprule.optimizer.options import check_options
from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.iterate import Iterations
from steprule.quasi_newton.memory import Memory, empty_memory
from steprule.quasi_newton.objective import Objective
from steprule.quasi_newton.options import (
    Options,
    check_common,
    check_group,
    default_max_eval,
    dtype_name,
)
from steprule.quasi_newton.parted_state import are_placed, is_parted, write_parted
from steprule.quasi_newton.result import Result
from steprule.quasi_newton.saved_state import Written, from_state, to_state
from steprule.quasi_newton.space import Space
from steprule.quasi_newton.spread import check_placements
from steprule.state.copying import moved, own_copy

_Loss = TypeVar("_Loss")

CLOSURE_EXAMPLE = """LBFGS evaluates the loss several times a step and needs a closure:
    def closure():
        optimizer.zero_grad(); loss = loss_fn(model(x), y); loss.backward(); return loss
    optimizer.step(closure)"""


class LBFGS(Optimizer):
    """Minimise by limited-memory BFGS.

    Each iteration moves along ``d = -H g``, with H built from the last ``history_size`` pairs
    ``s`` (steps) and ``y`` (changes of the gradient), by a step that the line search finds::

        x <- x + t d,   H = BFGS update of gamma I by the pairs,   gamma = y's / y'y

    Args:
        params: tensors, named tensors or groups; of any mix of real and complex dtypes and of
            devices, with or without gradients (none counts as zeros), sparse gradients included.
        lr: the step of every iteration (``line_search_fn=None``) or the first one tried; at least
            0 (default 1). Groups may differ: a group's part of the direction is scaled so that it
            moves ``lr / max(lr)`` times as far, ``d = -D H D g`` with
            ``D = diag(sqrt(lr / max(lr)))``, which still descends; 0 freezes a group.
        max_iter: iterations a call of ``step`` (default 20).
        max_eval: closure calls after which a call of ``step`` ends; None, the default, for
            ``max_iter * 5 // 4``. As in torch, the last move of the searches that are torch's may
            take one more; see ``strict_max_eval``.
        tolerance_grad: stop when no entry of the gradient is larger (default 1e-7; older torch:
            1e-5); negative for never.
        tolerance_change: stop when loss or parameters change less, in their own units (default
            1e-9); 0 iterates until the gradient is small.
        history_size: pairs kept (default 100).
        line_search_fn: None (fixed steps) and ``"strong_wolfe"`` give torch's numbers;
            ``"more_thuente"`` is the robust one to use; ``"backtracking"`` the cheap one
            (default None).
        bounds: ``(lo, hi)`` for all values of a group, either may be None (default None).
        history_dtype: how pairs are stored, ``torch.bfloat16`` for half the memory of float32;
            None, the default, for that of the flat vector (the widest dtype among the parameters).
        maximize: maximize instead (default False).
        strict_max_eval: never call the closure more than ``max_eval`` times a step, whatever the
            search (default False).

    When to use: smooth losses of the full batch: fits, physics-informed networks, Gaussian
    processes. Not mini-batches, whose noise its history takes for curvature. Take
    ``line_search_fn="more_thuente"`` and lr 1.

    Raises:
        ValueError: an option out of range, or different in two groups where it must agree.
        TypeError: an option of the wrong kind; ``step`` without a closure.

    Memory: ``2 * history_size * n * bytes(history_dtype)`` for the history; during a step as much
    again for each pair that it overwrites (a closure that raises gets them back), and about ten
    vectors of ``n`` values (docs/lbfgs.md).

    Source: D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale
    optimization", Mathematical Programming 45 (1989), algorithm 2.1. What differs from torch, and
    why, is listed in docs/lbfgs.md.
    """

    #: ``step`` cannot do without a closure.
    needs_closure: ClassVar[bool] = True
    extras: ClassVar[Mapping[str, Any]] = {
        "bounds": None,
        "history_dtype": None,
        "maximize": False,
        "strict_max_eval": False,
    }
    state_keys: ClassVar[tuple[str, ...]] = ("func_evals", "n_iter")
    _numel_cache: int | None = None  # of torch's helpers, which scripts borrow

    _result: Result | None

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1,
        max_iter: float = 20,
        max_eval: float | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        bounds: tuple[float | None, float | None] | None = None,
        history_dtype: torch.dtype | str | None = None,
        maximize: bool = False,
        strict_max_eval: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": default_max_eval(max_iter) if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
            "bounds": bounds,
            "history_dtype": dtype_name(history_dtype),
            "maximize": maximize,
            "strict_max_eval": strict_max_eval,
        }
        super().__init__(params, defaults)

    def _prepare(self) -> None:
        self._memory: Memory | None = None
        self._written: Written | None = None  # the state that _memory was written to
        self.__dict__.setdefault("_result", None)
        super()._prepare()

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        check_options(None, options, where)
        check_group(options, where)
        for first in self.__dict__.get("param_groups", [])[:1]:
            check_common(first, options, where)

    def _check_loaded(self, group: Mapping[str, Any], index: int) -> None:
        check_group({**self.extras, **group}, f"loaded state dict, group {index}: ")

    def init_state(self) -> None:
        """Make the state now, as before the first step: no pairs, no evaluations."""
        options, layout = self._problem()
        if layout.params and not self.state.get(layout.params[0]):
            self._write(empty_memory(layout, options), layout, anew=True)

    @property
    def _params(self) -> list[Tensor]:
        # By this name torch's class has them, and scripts that borrow its helpers.
        if len(self.param_groups) == 1:
            return cast("list[Tensor]", self.param_groups[0]["params"])
        return [param for group in self.param_groups for param in group["params"]]

    @_params.setter
    def _params(self, params: list[Tensor]) -> None:
        (group,) = self.param_groups
        group["params"] = params

    def result(self) -> Result:
        """Return what the last call of ``step`` did and why it stopped.

        Raises:
            RuntimeError: before the first step.
        """
        if self._result is None:
            raise RuntimeError("LBFGS has no result yet: call optimizer.step(closure) first")
        return self._result

    # Checkers are told that there must be a closure, so that they complain of a call without one;
    # that call has a message of ours, which shows how to write it.
    if TYPE_CHECKING:

        def step(self, closure: Callable[[], _Loss]) -> _Loss: ...  # type: ignore[override]

    else:

        @uncompiled
        @torch.no_grad()
        def step(self, closure=None):
            """Iterate up to ``max_iter`` times; return what the closure returned first.

            Args:
                closure: clears the gradients, computes the loss, calls ``backward`` on it and
                    returns it. Called with gradients enabled.

            Raises:
                TypeError: no closure, or one that returns no number. If the closure raises, so does
                    ``step``, and parameters and state are as before.
            """
            if closure is None:
                raise TypeError(CLOSURE_EXAMPLE)
            return self._iterate(closure)

    def _iterate(self, closure: Callable[[], Any]) -> Any:
        options, layout = self._problem()
        objective = Objective(closure, layout, maximize=options.maximize, max_eval=options.max_eval)
        if layout.size == 0 or (options.lr == 0.0 and options.line_search_fn is not None):
            return self._only_evaluate(objective)
        space = Space(layout, self.param_groups, options.lrs)
        kept = self._memory_for(layout, options)
        memory = kept.copy()
        memory.history.begin()
        before = layout.gather()
        is_kept = False
        try:
            stop = Iterations(objective, memory, options, space).run()
            with uninterrupted:
                self._keep(memory, layout, objective.evaluations)
                is_kept = True
        except BaseException:
            if not is_kept:
                with uninterrupted:
                    memory.history.restore()
                    layout.scatter(before)
            raise
        self._finish(
            Result(
                stop.reason,
                stop.iterations,
                objective.evaluations,
                stop.loss,
                stop.gradient_norm,
            )
        )
        return objective.first_output

    def _keep(self, memory: Memory, layout: Layout, evaluations: int) -> None:
        """Make what a step has left the state."""
        memory.history.commit()
        memory.func_evals += evaluations
        kept = self._memory
        self._memory = memory
        self._write(memory, layout, anew=kept is None or kept.history is not memory.history)
        self._written = Written(self._entries(layout))

    def _write(self, memory: Memory, layout: Layout, *, anew: bool) -> None:
        if layout.is_shared:
            write_parted(self.state, memory, layout, anew=anew)
            return
        entry = self.state.setdefault(layout.params[0], {})
        if is_parted(entry):  # saved on many ranks
            for param in layout.params[1:]:
                self.state.pop(param, None)
            entry.clear()
        entry.update(to_state(memory))

    def _entries(self, layout: Layout) -> list[Any]:
        """Return what the state has of the problem, None where a parameter has nothing."""
        if layout.is_shared or is_parted(self.state.get(layout.params[0])):
            return [self.state.get(param) for param in layout.params]
        return [self.state.get(layout.params[0])]

    def _only_evaluate(self, objective: Objective) -> Any:
        if objective.layout.params:
            loss = objective.here().loss
        else:
            objective.first_output = objective.closure()
            loss = float(objective.first_output)
        self._finish(Result("empty", 0, 1, objective.user_loss(loss), 0.0))
        return objective.first_output

    def _finish(self, result: Result) -> None:
        self._result = result
        if result.reason == "not_finite":
            warnings.warn(f"LBFGS stopped: {result}", RuntimeWarning, stacklevel=5)

    def _memory_for(self, layout: Layout, options: Options) -> Memory:
        """Return the memory in use, or one made of the state (loaded, copied, edited, resized)."""
        entries = self._entries(layout)
        if not any(entries):
            return empty_memory(layout, options)
        memory, written = self._memory, self._written
        is_current = memory and written and written.holds(entries) and memory.fits(layout, options)
        if memory and is_current and (not layout.is_shared or are_placed(entries, layout)):
            return memory
        return from_state(entries, layout, options)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in torch's form, with tensors of its own: later steps leave it alone."""
        packed = super().state_dict()
        packed["state"] = {key: own_copy(entry) for key, entry in packed["state"].items()}
        return packed

    def _loaded_entry(self, param: Tensor, entry: Any, flags: Mapping[str, Any]) -> Any:
        # Cast to the first parameter's dtype, as other optimizers' state is, the history of a
        # problem of several dtypes would be rounded.
        return moved(own_copy(entry), param.device)

    def _problem(self) -> tuple[Options, Layout]:
        layout = Layout.of([group["params"] for group in self.param_groups])
        if layout.is_shared:
            check_placements(self.param_groups)
        return Options.of(self.param_groups), layout
