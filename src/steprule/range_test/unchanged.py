"""A model and its optimizer as they were, after training on them has been tried."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steprule.checkpoints.random_states import random_states, set_random_states
from steprule.engines.uninterrupted import uninterrupted
from steprule.optimizer import Optimizer
from steprule.optimizer.held import held_by
from steprule.optimizer.hooks import HOOKS
from steprule.planning.step_record import StepRecord
from steprule.state.copying import own_copy

# What users hang on a step may change what only they know of (an average of the weights, a log).
_STEP_HOOKS = [name for name in HOOKS if name.startswith("_optimizer_step_")]


@contextmanager
def unchanged(
    models: Sequence[nn.Module], optimizer: torch.optim.Optimizer, data: Any
) -> Iterator[None]:
    """Put all back, bit for bit, at the end of the block, however it ends.

    That is: parameters, buffers, gradients and training modes of the modules; parameters, state,
    groups and attributes of the optimizer, and of those that it wraps; the global random
    generators, and those of ``data``. State, and tensors in groups, are the same objects
    afterwards: within the block the optimizer has copies of them, and its step runs no hooks.
    """
    before = _Before(models, optimizer, data)
    late: BaseException | None = None
    try:
        before.lend_copies()
        yield
    finally:
        while not before.is_back:
            late = _put_back(before) or late
        if late is not None:
            raise late


def _put_back(before: _Before) -> BaseException | None:
    """Put all back; return what a signal's handler raised on the way in or out."""
    try:
        with uninterrupted:
            before.put_back()
    except (KeyboardInterrupt, SystemExit) as error:
        return error
    return None


class _Before:
    """What there was."""

    def __init__(
        self, models: Sequence[nn.Module], optimizer: torch.optim.Optimizer, data: Any
    ) -> None:
        self.is_back = False
        modules = [module for model in models for module in model.modules()]
        self.random = random_states()
        self.generators = [(one, one.get_state()) for one in _generators_of(data)]
        self.modes = [(module, module.training) for module in modules]
        self.buffers = [(module._buffers, dict(module._buffers)) for module in modules]
        self.layers = _with_wrapped(optimizer)
        params: dict[int, Tensor] = {id(p): p for model in models for p in model.parameters()}
        for layer in self.layers:
            params |= {id(p): p for group in layer.param_groups for p in group["params"]}
        self.params = list(params.values())
        self.grads = [param.grad for param in self.params]
        held = [param.detach() for param in self.params]
        held += [x for _, own in self.buffers for x in own.values() if x is not None]
        # Memory with gaps of stride 0 can't be written, by anybody.
        self.tensors = [
            (x, x.clone()) for x in held if not any(s == 0 < n - 1 for s, n in _strides(x))
        ]
        for layer in self.layers:
            _let_go(layer)
        self.attributes = [(layer, dict(vars(layer))) for layer in self.layers]
        self.records = [(x, dict(vars(x))) for x in map(_record_of, self.layers) if x is not None]
        states = {id(layer.state): layer.state for layer in self.layers}
        self.states = [(state, dict(state)) for state in states.values()]
        groups = {id(g): g for layer in self.layers for g in layer.param_groups}
        self.groups = [(group, dict(group)) for group in groups.values()]

    def lend_copies(self) -> None:
        """Have what follows work on copies where it would change what there is."""
        for param in self.params:
            param.grad = None
        copies: dict[int, Tensor] = {id(param): param for param in self.params}
        for state, own in self.states:
            for key, entry in own.items():
                state[key] = own_copy(entry, copies)
        for group, own in self.groups:
            group.update({k: own_copy(v, copies) for k, v in own.items() if k != "params"})
        for layer, own in self.attributes:
            kept = {"param_groups", "state", *(name for name in own if name.endswith("_hooks"))}
            lent = {k: own_copy(v, copies) for k, v in own.items() if k not in kept}
            silent: dict[str, Any] = {name: OrderedDict() for name in _STEP_HOOKS if name in own}
            vars(layer).update({**lent, **silent})

    def put_back(self) -> None:
        """Put all back; as often as need be."""
        for layer in self.layers:
            _let_go(layer)
        for present, own in (*self.states, *self.groups):
            present.clear()
            present.update(own)
        for layer, own in self.attributes:
            vars(layer).clear()
            vars(layer).update(own)
        for record, own in self.records:
            vars(record).update(own)
        for buffers, own in self.buffers:
            buffers.clear()
            buffers.update(own)
        with torch.no_grad():
            for tensor, kept in self.tensors:
                tensor.copy_(kept)
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        for module, training in self.modes:
            module.training = training
        for generator, state in self.generators:
            generator.set_state(state)
        set_random_states(self.random)
        self.is_back = True


def _strides(x: Tensor) -> list[tuple[int, int]]:
    is_strided = x.layout is torch.strided
    return list(zip(x.stride(), x.shape, strict=True)) if is_strided else []


def _let_go(layer: Any) -> None:
    """Have an optimizer of ours forget what it made of its groups and state."""
    if isinstance(layer, Optimizer):
        layer._let_go_of_plans()
        layer._prepare()


def _record_of(layer: Any) -> Any:
    record = vars(layer).get("_record")
    return record if isinstance(record, StepRecord) else None


def _with_wrapped(optimizer: Any) -> list[Any]:
    """Return an optimizer and those that it holds."""
    found: dict[int, Any] = {}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        if id(one) not in found:
            found[id(one)] = one
            waiting += held_by(one)
    return list(found.values())


def _generators_of(data: Any) -> list[torch.Generator]:
    """Return the generators that the order of a loader's batches is drawn from."""
    sampler = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), sampler, getattr(sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(x): x for x in found if isinstance(x, torch.Generator)}.values())
