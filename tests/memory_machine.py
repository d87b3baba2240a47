"""A user who does everything that is allowed between two steps, in any order.

The same is done to torch's optimizer over twins of the parameters, and after every step both must
have come to the same. What a kernel is given is addresses: each action is one after which some
address, size or stride that was right a step ago may be wrong.
"""

from __future__ import annotations

import copy
import os
import pickle
import select
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from guarded import Watch
from helpers import TOLERANCES
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import steprule

SHAPES = [(5, 7), (6, 6), (3,), (), (2, 3, 4, 2), (130, 70)]
# Which the native loops do not take.
ODD_SHAPES = [(0, 3), (2, 1, 2, 1, 2, 1)]
# Enough for several threads, whatever the engine thinks is enough; never expanded or permuted,
# since copying so much is parallel in torch, which hangs in a forked child.
LARGE = (400_003,)
GRADIENTS = ["fresh", "fresh", "in place", "kept", "none", "expanded", "permuted", "guarded"]
LARGE_GRADIENTS = ["fresh", "in place", "kept", "none"]
DATA = ["cloned", "guarded", "gaps", "transposed", "reversed axes"]
STATE = ["scaled in place", "replaced", "other strides", "moved", "new dict", "deleted"]

indices = st.integers(0, 20)
seeds = st.integers(0, 2**31)


class Subject(NamedTuple):
    """An optimizer of ours, torch's, and what both are made with."""

    ours: Callable[..., steprule.Optimizer]
    theirs: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    dtype: torch.dtype = torch.float32


class MemoryMachine(RuleBasedStateMachine):
    """The actions; see the module."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject = subject
        self.threads = torch.get_num_threads()
        self.watch = Watch()
        self.snapshots: list[Any] = []

    def teardown(self) -> None:
        torch.set_num_threads(self.threads)

    # -- parameters -------------------------------------------------------------------------

    @initialize(
        shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4),
        has_large=st.booleans(),
        seed=seeds,
    )
    def start(self, shapes: list[tuple[int, ...]], has_large: bool, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self._make(self._new_params([*shapes, LARGE] if has_large else shapes))
        self.give_gradients(["fresh"])

    def _make(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        options = self.subject.options
        self.ours = self.subject.ours([pair[0] for pair in pairs], **options)
        self.theirs = self.subject.theirs([pair[1] for pair in pairs], **options)
        self.snapshots = []

    def _new_params(self, shapes: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = []
        for i, shape in enumerate(shapes):
            values = self._values(shape)
            ours = self.watch.guarded(values) if i % 2 else values.clone()
            made.append((ours.requires_grad_(), values.requires_grad_()))
        return made

    def _values(self, shape: tuple[int, ...] | torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=self.random, dtype=self.subject.dtype)

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for mine, twin in zip(self.ours.param_groups, self.theirs.param_groups, strict=True):
            yield from zip(mine["params"], twin["params"], strict=True)

    def _pair(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = list(self._pairs())
        return pairs[index % len(pairs)]

    # -- between steps ----------------------------------------------------------------------

    @rule(
        kinds=st.lists(st.sampled_from([*GRADIENTS, "bfloat16"]), min_size=1, max_size=4),
        settled=st.booleans(),
    )
    def give_gradients(self, kinds: list[str], settled: bool = False) -> None:
        if settled:
            self.settle()
        for i, (param, twin) in enumerate(self._pairs()):
            kind = kinds[i % len(kinds)]
            if param.shape == LARGE and kind not in LARGE_GRADIENTS:
                kind = "fresh"
            if kind == "kept":
                continue
            if kind == "in place" and param.grad is not None and 0 not in param.grad.stride():
                param.grad.copy_(self._values(param.shape))
            else:
                self._set_gradient(param, kind)
            grad = param.grad
            twin.grad = None if grad is None else torch.empty_like(twin).copy_(grad)

    def _set_gradient(self, param: torch.Tensor, kind: str) -> None:
        values = self._values(param.shape)
        if hasattr(param, "grad_dtype"):  # torch 2.10: a gradient's dtype may be another
            param.grad = None
            param.grad_dtype = None
        elif kind == "bfloat16":
            kind = "fresh"
        if kind == "none":
            param.grad = None
        elif kind == "expanded":
            param.grad = self._values(()).expand(param.shape)
        elif kind == "permuted":
            param.grad = _with_reversed_axes(values)
        elif kind == "guarded":
            param.grad = self.watch.guarded(values)
        elif kind == "bfloat16":
            param.grad = values.bfloat16()
        else:
            param.grad = values

    @rule(
        index=indices,
        how=st.sampled_from(DATA),
        keep=st.booleans(),
        settled=st.booleans(),
        then=st.booleans(),
    )
    def swap_data(self, index: int, how: str, keep: bool, settled: bool, then: bool) -> None:
        if settled:
            self.settle()
        param, twin = self._pair(index)
        if keep:  # else its memory may be anyone's at once
            self.watch.retire(param)
        values = self._values(param.shape)
        if how == "cloned":
            param.data = values.clone()
        elif how in ("guarded", "gaps"):
            param.data = self.watch.guarded(values, gaps=how == "gaps" and param.shape != LARGE)
        elif how == "transposed" and param.dim() == 2 and param.shape[0] == param.shape[1]:
            values = param.detach().t().clone()
            self.watch.forget(param)
            param.data = param.data.t()  # the same memory, read otherwise
        else:
            param.data = _with_reversed_axes(values)
        twin.data = values.clone(memory_format=torch.contiguous_format)
        if then:
            self.step()

    @rule(
        index=indices,
        how=st.sampled_from(STATE),
        keep=st.booleans(),
        settled=st.booleans(),
        then=st.booleans(),
    )
    def edit_state(self, index: int, how: str, keep: bool, settled: bool, then: bool) -> None:
        if settled:
            self.settle()
        param, twin = self._pair(index)
        if not self.ours.state.get(param) or not self.theirs.state.get(twin):
            return
        mine, other = self.ours.state[param], self.theirs.state[twin]
        if how == "deleted":
            del self.ours.state[param], self.theirs.state[twin]
        elif how == "new dict":
            self.ours.state[param] = dict(mine)
        else:
            names = [n for n, value in mine.items() if isinstance(value, torch.Tensor)]
            name = names[index % len(names)]
            self._edit(mine, other, name, how, keep)
        if then:
            self.step()

    def _edit(
        self, mine: dict[str, Any], other: dict[str, Any], name: str, how: str, keep: bool
    ) -> None:
        slot = mine[name]
        if how == "scaled in place":
            if slot.dim():
                slot.mul_(0.5)
                other[name].mul_(0.5)
            return
        if keep:
            self.watch.retire(slot)
        if how == "moved":
            slot.data = slot.data.clone()
        elif how == "other strides":
            mine[name] = _with_reversed_axes(slot)
        else:
            mine[name] = slot.clone()

    @rule()
    def take_snapshot(self) -> None:
        both = (self.ours.state_dict(), self.theirs.state_dict())
        self.snapshots.append(copy.deepcopy(both))

    @precondition(lambda self: self.snapshots)
    @rule(index=indices)
    def load_snapshot(self, index: int) -> None:
        mine, other = self.snapshots[index % len(self.snapshots)]
        if len(mine["param_groups"]) != len(self.ours.param_groups):
            with pytest.raises(ValueError, match="parameter groups"):
                self.ours.load_state_dict(mine)
            return
        self.ours.load_state_dict(copy.deepcopy(mine))
        self.theirs.load_state_dict(copy.deepcopy(other))
        self.step()

    @precondition(lambda self: len(list(self._pairs())) < 7)
    @rule(shapes=st.lists(st.sampled_from([*SHAPES, *ODD_SHAPES]), min_size=1, max_size=2))
    def add_group(self, shapes: list[tuple[int, ...]]) -> None:
        pairs = self._new_params(shapes)
        self.ours.add_param_group({"params": [pair[0] for pair in pairs], "lr": 0.02})
        self.theirs.add_param_group({"params": [pair[1] for pair in pairs], "lr": 0.02})

    @rule(index=indices, option=st.sampled_from(["lr", "lr", "weight_decay"]), on=st.booleans())
    def set_option(self, index: int, option: str, on: bool) -> None:
        """A weight decay of 0 is another form, and another kernel, than one above it."""
        if option not in self.subject.options:
            return
        value = self.subject.options[option] * on
        for optimizer in (self.ours, self.theirs):
            optimizer.param_groups[index % len(optimizer.param_groups)][option] = value

    # -- the optimizer itself ---------------------------------------------------------------

    @rule()
    def make_another(self) -> None:
        """The old one's plan, and all that it kept alive, are gone."""
        pairs = list(self._pairs())
        del self.ours, self.theirs
        self._make(pairs)
        self.step()

    @rule(pickled=st.booleans())
    def copy_it(self, pickled: bool) -> None:
        for param, twin in self._pairs():
            param.grad = twin.grad = None  # copied by deepcopy, not by pickle
            self.watch.retire(param)
        for entry in self.ours.state.values():
            for value in entry.values():
                if isinstance(value, torch.Tensor):
                    self.watch.retire(value)
        self.old = self.ours
        both = (self.ours, self.theirs)
        self.ours, self.theirs = (
            pickle.loads(pickle.dumps(both)) if pickled else copy.deepcopy(both)
        )

    @rule()
    def go_through_a_file(self) -> None:
        """A new optimizer over the same parameters, loaded from what the old one saved."""
        with tempfile.TemporaryDirectory() as folder:
            self.ours.save(Path(folder) / "file")
            groups = [{**group} for group in self.ours.param_groups]
            self.ours = self.subject.ours(groups, **self.subject.options)
            self.ours.load(Path(folder) / "file")
        self.step()

    @rule(count=st.integers(1, 2))  # more than there are cores would spin on a busy machine
    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)
        self.step()

    # -- steps ------------------------------------------------------------------------------

    @rule(elsewhere=st.booleans())
    def step(self, elsewhere: bool = False) -> None:
        before = [None if p.grad is None else p.grad.clone() for p, _ in self._pairs()]
        if elsewhere:
            thread = threading.Thread(target=self.ours.step)
            thread.start()
            thread.join()
        else:
            self.ours.step()
        self.theirs.step()
        for (param, _), grad in zip(self._pairs(), before, strict=True):
            assert (param.grad is None) == (grad is None)
            assert grad is None or torch.equal(param.grad, grad), "a gradient was written to"
        self.watch.check()
        self._compare()

    @rule(kinds=st.lists(st.sampled_from(GRADIENTS), min_size=1, max_size=3))
    def gradients_and_step(self, kinds: list[str]) -> None:
        self.give_gradients(kinds)
        self.step()

    def settle(self) -> None:
        """Several steps alike: from then on one native call does all of a step."""
        self.give_gradients(["fresh"])
        for _ in range(3):
            self.step()

    def _compare(self) -> None:
        tolerance = TOLERANCES[self.subject.dtype]
        for param, twin in self._pairs():
            torch.testing.assert_close(param, twin, **tolerance)
            mine, other = self.ours.state.get(param, {}), self.theirs.state.get(twin, {})
            assert mine.keys() == other.keys() or not other  # explain() makes state, unused yet
            for name, expected in other.items():
                value = mine[name]
                scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
                torch.testing.assert_close(
                    value,
                    expected,
                    rtol=tolerance["rtol"],
                    atol=tolerance["atol"] * scale,
                    # torch casts a number of a whole parameter to its dtype when it is loaded.
                    check_dtype=value.dim() > 0,
                )

    @rule(index=indices)
    def step_on_freed_memory(self, index: int) -> None:
        """The kernel refuses a gradient whose storage was taken away, and changes nothing."""
        param, twin = self._pair(index)
        if param.numel() < 2:
            return
        self._set_gradient(param, "fresh")
        row = self.ours.explain().rows[index % len(list(self._pairs()))]
        if row.engine != "fused":  # torch's own operations end the process
            param.grad = twin.grad = None
            return
        param.grad.untyped_storage().resize_(0)
        copies = [p.detach().clone() for p, _ in self._pairs()]
        with pytest.raises(RuntimeError, match="memory"):
            self.ours.step()
        assert all(torch.equal(p, c) for (p, _), c in zip(self._pairs(), copies, strict=True))
        param.grad = twin.grad = None
        self.watch.check()

    @precondition(lambda self: hasattr(os, "fork"))
    @rule(chance=st.integers(0, 3))
    def step_in_a_child(self, chance: int) -> None:
        """A forked child's step gives the bits that its parent's next step gives."""
        if chance or any(row.engine != "fused" for row in self.ours.explain().rows):
            return  # torch's own parallel operations hang in a child
        self.step()  # what a step allocates, torch may fill in parallel: not in a child
        with tempfile.TemporaryFile() as file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of forking with threads: that is the point
                child = os.fork()
            if child == 0:
                _end_child(lambda: (self.ours.step(), file.write(self._bytes()), file.flush()))
            assert _exit_code(child) == 0
            self.step()
            file.seek(0)
            assert file.read() == self._bytes()

    def _bytes(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p, _ in self._pairs())


def _with_reversed_axes(values: torch.Tensor) -> torch.Tensor:
    """The same elements at the same indices, in another order of memory."""
    axes = list(reversed(range(values.dim())))
    return values.permute(axes).clone(memory_format=torch.contiguous_format).permute(axes)


def _end_child(task: Callable[[], Any]) -> None:
    """Do it and end the process, whatever happens: pytest goes on in the parent alone."""
    code = 1
    try:
        task()
        code = 0
    finally:
        os._exit(code)


def _exit_code(child: int, seconds: float = 60.0) -> int:
    handle = os.pidfd_open(child)
    try:
        has_ended = bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)
    if not has_ended:
        os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    assert has_ended, "the child's step did not end"
    return os.waitstatus_to_exitcode(status)
