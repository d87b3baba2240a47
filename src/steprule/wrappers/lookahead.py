"""Lookahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.distributed import torch_checkpoints
from steprule.distributed.regions import region_of
from steprule.distributed.shards import is_sharded, local_of, wrapped
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats import Format
from steprule.formats.choices import StoringOptions, param_format, storing_of
from steprule.formats.floating import compute_dtype, real_view, wide_dtype
from steprule.formats.random_bits import array_key, param_key, random_words
from steprule.optimizer.averaging import count_change
from steprule.optimizer.base import Optimizer
from steprule.optimizer.train_eval import TRAIN_MODE
from steprule.planning.step_record import StepRecord
from steprule.schedules import checks
from steprule.state.sizes import StateBytes, state_bytes_of
from steprule.state.storing import columns_in, format_in
from steprule.wrappers.sam import SAM
from steprule.wrappers.slow_weights import loaded_slow_weights
from steprule.wrappers.wrapper import Wrapper, check_keys, layers, params_of

#: What slow weights are called: in a state dict, and among the bytes of the state.
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

    State: for each parameter its slow weight, in float32 for parameters of 16 bits (they are
    rounded as the wrapped optimizer's ``param_rounding`` says). In a state dict they stand, with
    the number of steps, under ``"lookahead"``. Slow weights start at the parameters as they are
    before their first step. Steps that guards or a scaler pass over are not counted.

    When to use: to steady a large lr or a small batch; it takes one copy of the parameters, and
    hardly any time. Keep the wrapped optimizer's lr, or double it. Between two moves the
    parameters are the fast ones: evaluate after a multiple of k steps. The averages of
    ``ema_decay`` are of what the wrapped optimizer's steps come to, before a move.

    Raises:
        TypeError: not an optimizer; or one whose parameters are not its own to move: schedule-free,
            with divided state (``shard_state``), or SAM (which goes round Lookahead instead).
        ValueError: ``k`` or ``alpha`` out of its range, also when set; ``differentiable=True``.

    Source: Zhang, Lucas, Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", 2019,
    algorithm 1; the wrapped optimizer's state is left as it is. timm's starts slow weights after
    the first k steps, and so makes no move there; pytorch-optimizer's is as here.
    """

    key = "lookahead"
    attributes = ("_k", "_alpha", "_steps", "_slow")
    # That of the wrapped optimizer is not this one's: the scaler divides and skips itself.
    _step_supports_amp_scaling = False

    _steps: int
    _slow: dict[Tensor, Tensor]

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
        self.k, self.alpha = k, alpha
        self._steps, self._slow = 0, {}

    @property
    def k(self) -> int:
        """Steps of the wrapped optimizer between two moves."""
        return self._k

    @k.setter
    def k(self, value: int) -> None:
        self._k = checks.whole("k", value, low=1)

    @property
    def alpha(self) -> float:
        """How much of the way is kept."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = _checked_alpha(value)

    # -- steps ----------------------------------------------------------------------------

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if torch_checkpoints.is_asking():  # for state alone: it is no step
            return self.optimizer.step()
        starting = self._starting()
        result = self.optimizer.step() if closure is None else self.optimizer.step(closure)
        with torch.no_grad(), uninterrupted:
            if self._was_taken():
                self._slow.update(starting)
                self._steps += 1
                if self._steps % self._k == 0:
                    self._move()
        return result

    def _starting(self) -> dict[Tensor, Tensor]:
        """Return slow weights of parameters that may be updated now for the first time."""
        params = params_of(self.param_groups)
        new = {param for param in params if param not in self._slow and param.requires_grad}
        with torch.no_grad():
            stored = self._stored() if new else ()
            return {one.param: one.copied() for one in stored if one.param in new}

    def _was_taken(self) -> bool:
        """Tell whether the wrapped optimizer's last step was one: guards may have skipped it."""
        record = getattr(self.optimizer, "_record", None)
        if isinstance(record, StepRecord) and record.sums is not None:
            return not record.skipped
        return True

    def _move(self) -> None:
        stored = [one for one in self._stored() if one.param in self._slow]
        for one in stored:  # the model may have been moved, or cast
            wide, device = wide_dtype(one.param), one.param.device
            self._slow[one.param] = self._slow[one.param].to(dtype=wide, device=device)
        slow = [real_view(local_of(self._slow[one.param])) for one in stored]
        if slow:
            torch._foreach_lerp_(slow, [one.read() for one in stored], self._alpha)
        for one, value in zip(stored, slow, strict=True):
            one.write(value, self._steps)

    def _stored(self) -> Iterator[_Stored]:
        """Give each parameter with the way in which it is stored."""
        number: dict[Tensor, int] = {p: i for i, p in enumerate(params_of(self.param_groups))}
        inner = self.optimizer
        for group in self.param_groups:
            kind = inner._kind_of(group) if isinstance(inner, Optimizer) else None
            options = None if kind is None else kind.options_of(group)
            own = () if kind is None else kind.rule.options
            storing = StoringOptions() if options is None else storing_of(options, own)
            for param in group["params"]:
                if param in number:
                    entry = self.state.get(param)
                    there = entry if isinstance(entry, Mapping) else {}
                    yield _Stored(param, there, storing, number.pop(param))

    def state_bytes(self) -> StateBytes:
        """Return the bytes of the state, slow weights included, by slot and format."""
        kept = {**self.state}
        for param, slow in self._slow.items():
            kept[param] = {**kept.get(param, {}), SLOW: slow}
        return state_bytes_of(kept)

    # -- saving and loading ---------------------------------------------------------------

    def _numbers(self) -> dict[str, Any]:
        return {"k": self._k, "alpha": self._alpha}

    def _own_state(self, groups: list[dict[str, Any]]) -> dict[str, Any]:
        slow = {
            key: self._slow[param]
            for group, packed in zip(self.param_groups, groups, strict=True)
            for param, key in zip(group["params"], packed["params"], strict=True)
            if param in self._slow
        }
        return {**self._numbers(), "steps": self._steps, SLOW: slow}

    def _loaded(
        self, own: Mapping[str, Any], state_dict: Mapping[str, Any], **how: Any
    ) -> dict[str, Any]:
        check_keys(self.key, own, ("k", "alpha", "steps", SLOW))
        slow = own.get(SLOW, {})
        groups = self.param_groups
        if slow and not self._is_round_ours:  # torch's take parameters in their order
            groups = [{"params": group["params"]} for group in groups]
        return {
            "_k": checks.whole("k", own.get("k", self._k), low=1),
            "_alpha": _checked_alpha(own.get("alpha", self._alpha)),
            "_steps": checks.whole("steps", own.get("steps", 0)),
            "_slow": loaded_slow_weights(slow, groups, state_dict, **how),
        }


def _checked_alpha(value: Any) -> float:
    alpha = checks.number("alpha", value, above=0.0)
    if alpha > 1:
        raise ValueError(f"alpha must be at most 1, got {value!r}")
    return alpha


@dataclass(frozen=True)
class _Stored:
    """A parameter, its state, how its group stores it, and its number among all."""

    param: Tensor
    entry: Mapping[str, Any]
    storing: StoringOptions
    number: int

    def _columns(self) -> tuple[Format, list[Tensor]]:
        """Return the parameter's format and tensors: what is kept beside it tells most of it."""
        there = {**self.entry, "param": self.param.detach()}
        present, wanted = format_in("param", there), param_format(self.storing, self.param)
        storage = wanted if wanted.columns == present.columns else present
        return storage, columns_in("param", there, storage)

    def read(self) -> Tensor:
        """Return its numbers, as real ones: those that are here."""
        storage, columns = self._columns()
        return storage.read(columns, compute_dtype(self.param), local_of(self.param).shape)

    def copied(self) -> Tensor:
        """Return a copy in the dtype of the computation."""
        if len(self._columns()[0].columns) == 1:
            return self.param.detach().to(dtype=wide_dtype(self.param), copy=True)
        value = self.read()
        return wrapped(value, self.param) if is_sharded(self.param) else value

    def write(self, value: Tensor, step: int) -> None:
        """Round numbers into it, at random where its steps do."""
        storage, columns = self._columns()
        words = None
        if storage.is_random:
            key = param_key(self.storing.rounding_seed, f"{SLOW} {self.number}")
            region = region_of(self.param) if is_sharded(self.param) else None
            words = random_words(array_key(key, step, 0), value.shape, value.device, region)
        storage.write(columns, value, words)
        count_change(self.param)
