"""Lookahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import local_of
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.floating import real_view
from steprule.optimizer.averaging import count_change
from steprule.optimizer.train_eval import TRAIN_MODE
from steprule.schedules import checks
from steprule.state.sizes import StateBytes, state_bytes_of
from steprule.wrappers.sam import SAM
from steprule.wrappers.wrapper import Wrapper, layers, params_of

#: The key of a state dict's entries for the slow weights.
SLOW = "slow_param"


class Lookahead(Wrapper):
    """Lookahead: after every k steps, half of the way back.

    ::

        after k steps of the wrapped optimizer:
            slow = slow + alpha * (param - slow)
            param = slow

    Args:
        optimizer: the wrapped one, of this library or torch's.
        k: its steps between two such moves, >= 1 (default 5).
        alpha: how much of the way is kept, in (0, 1] (default 0.5).

    Attributes:
        k: likewise; may be set between steps.
        alpha: likewise.

    State: ``slow_param`` for each parameter, in its dtype; in a state dict it stands in the
    parameter's entry, and the number of steps under ``"lookahead"``. Slow weights start at the
    parameters as they are before their first step.

    When to use: to steady a large lr or a small batch; it takes one copy of the parameters, and
    hardly any time. Keep the wrapped optimizer's lr, or double it. Between two moves the
    parameters are the fast ones: evaluate after a multiple of k steps.

    Raises:
        TypeError: not an optimizer; or one whose parameters are not its own to move: schedule-free,
            with divided state (``shard_state``), or SAM (which goes round Lookahead instead).
        ValueError: ``k`` or ``alpha`` out of its range.

    Source: Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019,
    algorithm 1; the wrapped optimizer's state is left as it is. timm's starts slow weights after
    the first k steps, and so makes no move there; pytorch-optimizer's is as here.
    """

    key = "lookahead"
    # That of the wrapped optimizer is not this one's: the scaler divides and skips itself.
    _step_supports_amp_scaling = False

    k: int
    alpha: float
    _steps: int

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(optimizer)
        if any(isinstance(one, SAM) for one in layers(optimizer)):
            raise TypeError(
                "Lookahead can't go round SAM, whose second_step() would pass it by: "
                "SAM(Lookahead(optimizer)) makes the same steps"
            )
        if any(TRAIN_MODE in group for group in optimizer.param_groups):
            raise TypeError(
                f"Lookahead can't go round {type(optimizer).__name__}, which averages its weights "
                "itself and would not know of the move"
            )
        if getattr(optimizer, "_owners", None) is not None:
            raise TypeError(
                "Lookahead keeps slow weights of all parameters, the state of "
                f"{type(optimizer).__name__} is divided among ranks (shard_state): leave one out"
            )
        self.__dict__.update(self._check_own({"k": k, "alpha": alpha}))
        self._slow: dict[Tensor, Tensor] = {}

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._start()
        result = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        with torch.no_grad(), uninterrupted:
            self._steps += 1
            if self._steps % self.k == 0:
                self._move()
        return result

    def _start(self) -> None:
        """Have slow weights of parameters that may be updated now for the first time."""
        for param in params_of(self.param_groups):
            if param not in self._slow and param.requires_grad:
                self._slow[param] = param.detach().clone()

    def _move(self) -> None:
        params = [param for param in params_of(self.param_groups) if param in self._slow]
        for param in params:
            if self._slow[param].device != param.device:  # the model was moved
                self._slow[param] = self._slow[param].to(param.device)
        fast = [real_view(local_of(param)) for param in params]
        slow = [real_view(local_of(self._slow[param])) for param in params]
        if fast:
            torch._foreach_lerp_(slow, fast, self.alpha)
            torch._foreach_copy_(fast, slow)
        for param in params:
            count_change(param)
            # What is kept beside a parameter of few bits belongs to what it was.
            for key, value in self.state.get(param, {}).items():
                if isinstance(key, str) and key.startswith("param:"):
                    local_of(value).zero_()

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the state, slow weights included, by slot and format."""
        kept = {**self.state}
        for param, slow in self._slow.items():
            kept[param] = {**kept.get(param, {}), SLOW: slow}
        return state_bytes_of(kept)

    def _own_state(self) -> dict[str, Any]:
        return {"k": self.k, "alpha": self.alpha, "steps": self._steps}

    def _check_own(self, saved: Mapping[str, Any]) -> dict[str, Any]:
        checked: dict[str, Any] = {"_steps": checks.whole("steps", saved.get("steps", 0))}
        if "k" in saved:
            checked["k"] = checks.whole("k", saved["k"], low=1)
        if "alpha" in saved:
            alpha = checks.number("alpha", saved["alpha"], above=0.0)
            if alpha > 1:
                raise ValueError(f"alpha must be at most 1, got {saved['alpha']!r}")
            checked["alpha"] = alpha
        return checked

    def _entries(self, packed: Mapping[Any, Any]) -> Mapping[Any, Any]:
        params = [param for group in self.param_groups for param in group["params"]]
        slow = {i: self._slow[p] for i, p in enumerate(params) if p in self._slow}
        own = {i: {**packed.get(i, {}), SLOW: value} for i, value in slow.items()}
        return {**packed, **own}

    def _take_entries(self) -> None:
        self._slow.clear()
        for param in params_of(self.param_groups):
            entry = self.state.get(param)
            if isinstance(entry, dict) and SLOW in entry:
                self._slow[param] = entry.pop(SLOW)
                if not entry:  # torch's optimizers make state where an entry is empty
                    del self.state[param]
