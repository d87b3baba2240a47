"""The operations that stand in a graph for what is no tensor operation of torch's.

``steprule::begin`` puts a step's numbers into a tensor, ``steprule::step`` is a whole step, the
kernels' for one. Both say what they write, so that a graph keeps them in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from steprule.engines.uninterrupted import uninterrupted
from steprule.optimizer.compiling.prepared import PreparedStep, check_may_step, prepared_step
from steprule.optimizer.hooks import run_in_graph
from steprule.optimizer.scheduled import advance_schedules
from steprule.planning.plan import PassedOver, Plan

_library: Any = torch.library  # untyped in torch
_LIBRARY = _library.Library("steprule", "FRAGMENT")
_LIBRARY.define("begin(Tensor(a!) numbers, int handle) -> ()")
_LIBRARY.define("step(Tensor(a!) numbers, Tensor(b!)[] written, Tensor[] grads, int handle) -> ()")


def _begin(numbers: Tensor, handle: int) -> None:
    with uninterrupted:
        prepared_step(handle).begin(numbers)
    run_in_graph(prepared_step(handle).optimizer)


def _step(numbers: Tensor, written: Sequence[Tensor], grads: Sequence[Tensor], handle: int) -> None:
    prepared = prepared_step(handle)
    count = len(prepared.places)
    params, arrays = written[:count], written[count:]
    own_params, own_arrays = _own_tensors(prepared)
    numbers.add_(1)
    if _are_same((*params, *arrays), (*own_params, *own_arrays)):
        with _gradients(prepared.optimizer, own_params, grads):
            prepared.optimizer._step()
    else:
        _step_on_copies(prepared, own_params, params, grads, arrays)
    run_in_graph(prepared.optimizer)


def _own_tensors(prepared: PreparedStep) -> tuple[list[Tensor], list[Tensor]]:
    """Return the optimizer's parameters and arrays of the state, as a graph has them."""
    optimizer = prepared.optimizer
    groups, state = optimizer.param_groups, optimizer.state
    params = [groups[group]["params"][position] for group, position in prepared.places]
    arrays = [
        state[param][name]
        for param, names in zip(params, prepared.names, strict=True)
        for name in names
    ]
    return params, arrays


def _are_same(given: Sequence[Tensor], own: Sequence[Tensor]) -> bool:
    return len(given) == len(own) and all(map(_is_same, given, own))


def _is_same(given: Tensor, own: Tensor) -> bool:
    return given is own or (
        given.data_ptr() == own.data_ptr()
        and given.shape == own.shape
        and given.stride() == own.stride()
        and given.dtype == own.dtype
    )


@contextmanager
def _gradients(optimizer: Any, params: Sequence[Tensor], grads: Sequence[Tensor]) -> Iterator[None]:
    """Have the parameters these gradients inside, and all others of the optimizer none."""
    wanted = dict(zip(params, grads, strict=True))
    before = []
    try:
        for group in optimizer.param_groups:
            for param in group["params"]:
                grad, new = param.grad, wanted.get(param)
                if grad is not new:
                    before.append((param, grad))
                    param.grad = new
        yield
    finally:
        for param, grad in before:
            param.grad = grad


def _step_on_copies(
    prepared: PreparedStep,
    own_params: Sequence[Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    arrays: Sequence[Tensor],
) -> None:
    """Step with copies in the place of parameters and state, as some backends hand them over.

    The backend takes over what is written into the copies: all that the state has is arrays here.
    """
    optimizer = prepared.optimizer
    check_may_step(optimizer)
    context, rest = optimizer._context(), iter(arrays)
    copies = {own: param.detach() for own, param in zip(own_params, params, strict=True)}
    state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
    for (own, copy), names in zip(copies.items(), prepared.names, strict=True):
        if own in context.state:
            state[copy] = {**context.state[own], **{name: next(rest) for name in names}}
    for copy, grad in zip(copies.values(), grads, strict=True):
        copy.grad = grad
    groups = [
        # The others stand there without a gradient: places are what parameters are known by.
        {**group, "params": [copies.get(p, p.detach()) for p in group["params"]]}
        for group in context.groups
    ]
    fresh = {copy for own, copy in copies.items() if own in context.fresh}
    try:
        with torch.no_grad():
            plan = Plan(replace(context, groups=groups, state=state, fresh=fresh), for_step=True)
            with uninterrupted:
                plan.run_admitted()
                plan.let_go()
                plan.settle_first_updates()
                context.fresh.difference_update(o for o, c in copies.items() if c not in fresh)
                advance_schedules(optimizer.param_groups)
    except PassedOver:
        pass


for _name, _function in (("begin", _begin), ("step", _step)):
    _LIBRARY.impl(_name, _function, "CompositeExplicitAutograd")
    _library.register_fake(f"steprule::{_name}", lambda *_: None, lib=_LIBRARY)

#: The operations, as a graph calls them.
begin, step = torch.ops.steprule.begin, torch.ops.steprule.step
