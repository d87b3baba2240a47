"""Signals in the midst of a step: what their handlers see, and leave, is a whole number of steps.

A signal is raised at one of the function calls of a step, Python's or C's; then at a later one, and
so on through the step. Whatever its handler does, the run that goes on afterwards (with the step
taken again where it had not begun) must end where an undisturbed one ends.
"""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import ENGINES
from torch import Tensor

import steprule
from steprule.engines.uninterrupted import Uninterrupted, uninterrupted
from steprule.schedules import linear

STEPS = 5
# Python drops what is raised where it closes a generator.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def pythons_handler() -> Iterator[None]:
    """A shell has its background jobs ignore Ctrl-C; pytest has set Python's handler otherwise."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Stopped(Exception):  # noqa: N818
    """What a handler raises."""


def stop(number: int, frame: object) -> None:
    raise Stopped


@contextlib.contextmanager
def handled_by(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def raised_at(call: int, step: Callable[[], Any], number: int = signal.SIGINT) -> bool:
    """Take a step and raise a signal at one of its calls; whether there are so many."""
    seen = -1

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        if event in ("call", "c_call"):
            seen += 1
            if seen == call:
                sys.setprofile(None)
                signal.raise_signal(number)

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
        # A profiler raises before a function of C, where Python runs no handler: also before the
        # one that sets torch's mode back.
        torch.set_grad_enabled(True)
    return seen >= call


def calls_of(step: Callable[[], Any]) -> int:
    """Take a step; how many calls it has."""
    seen = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(None)
    return seen


class Run:
    """An optimizer on parameters of several kinds, with gradients that follow from the step."""

    def __init__(self, make: Callable[[Any], Any], sparse: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        kinds = (torch.float32, torch.float64, torch.float32)
        self.params = [
            torch.randn(4, 3, generator=generator).to(kind).requires_grad_() for kind in kinds
        ]
        self.optimizer = make(self.params)
        self.sparse = sparse

    def step(self, i: int) -> None:
        for k, param in enumerate(self.params):
            param.grad = torch.full_like(param, 0.1 * (i + 1) - 0.2 * k)
            if self.sparse and k == 1:
                param.grad = param.grad.to_sparse(1)
        self.optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)  # what is told of it is told again
        self.optimizer.step()

    def seen(self) -> list[Tensor]:
        """What a checkpoint would hold."""
        packed = self.optimizer.state_dict()["state"]
        values = [value for key in packed for value in packed[key].values()]
        values.append(torch.tensor(self.optimizer.param_groups[0].get("schedule_step", 0)))
        return [copy.deepcopy(x) for x in [*map(Tensor.detach, self.params), *values]]


def are_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


MAKERS = {
    "Adam": lambda params, **more: steprule.Adam(params, lr=0.1, **more),
    "scheduled": lambda params, **more: steprule.Adam(params, lr=linear(0.1, 0, steps=9), **more),
    "SGD": lambda params, **more: steprule.SGD(params, lr=0.1, momentum=0.9, **more),
    "clipped": lambda params, **more: steprule.Adam(params, lr=0.1, clip_grad_norm=0.1, **more),
    "LAMB": lambda params, **more: steprule.LAMB(params, lr=0.1, **more),
    "bfloat16": lambda params, **more: steprule.Adam(params, state_format="bfloat16", **more),
    "Prodigy": lambda params, **more: steprule.Prodigy(params, **more),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("begun", [0, 1, 3])
def test_an_interrupt_comes_before_or_after_a_step(name: str, engine: str, begun: int) -> None:
    is_slow = engine == "triton"
    if is_slow and (begun != 1 or name != "Adam"):
        pytest.skip("interpreted kernels: one of them is enough")

    def make(params: list[Tensor]) -> Any:
        return MAKERS[name](params, engine=engine)

    undisturbed = Run(make)
    for i in range(STEPS):
        undisturbed.step(i)
    run = Run(make)
    for i in range(begun):
        run.step(i)
    calls = calls_of(lambda: run.step(begun))
    was_after = set()
    samples = {*range(0, calls, calls // (4 if is_slow else 20) + 1), calls - 2, calls - 1}
    for call in sorted(samples):
        run = Run(make)
        for i in range(begun):
            run.step(i)
        before = [p.detach().clone() for p in run.params]
        with contextlib.suppress(KeyboardInterrupt):
            raised_at(call, lambda run=run: run.step(begun))
        is_after = not are_equal(before, [p.detach() for p in run.params])
        was_after.add(is_after)
        for i in range(begun + is_after, STEPS):
            run.step(i)
        assert are_equal(run.seen(), undisturbed.seen()), f"torn at call {call} of {calls}"
    assert was_after == {False, True}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("sparse", [False, True])
def test_a_handler_sees_whole_steps(sparse: bool) -> None:
    """As one that saves a checkpoint does; a sparse gradient steps beside the whole step."""

    def make(params: list[Tensor]) -> Any:
        return steprule.SGD(params, lr=0.1, momentum=0.0 if sparse else 0.9)

    undisturbed = Run(make, sparse)
    known = [undisturbed.seen()]
    for i in range(STEPS):
        undisturbed.step(i)
        known.append(undisturbed.seen())
    for call in range(0, 2000, 29):
        run = Run(make, sparse)
        for i in range(STEPS - 1):
            run.step(i)
        saved: list[list[Tensor]] = []
        with handled_by(signal.SIGTERM, lambda *_, s=saved, r=run: s.append(r.seen())):
            if not raised_at(call, lambda r=run: r.step(STEPS - 1), signal.SIGTERM):
                return
        assert any(are_equal(saved[0], seen) for seen in known[-2:])
    raise AssertionError("a step of so many calls")


def test_an_interrupt_in_the_backward_pass_leaves_each_parameter_whole() -> None:
    for call in range(0, 6000, 67):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        optimizer = steprule.step_in_backward(net, lambda p: steprule.Adam(p, engine="eager"))
        loss = net(torch.ones(2, 3)).square().sum()
        try:
            if not raised_at(call, loss.backward):
                return
        except KeyboardInterrupt:
            pass
        for param in net.parameters():
            count = float(optimizer.state.get(param, {}).get("step", 0))
            is_updated = param.grad is None and count == 1
            assert is_updated or count == 0, f"call {call}"
    raise AssertionError("a pass of so many calls")


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_is_as_before_or_after(search: str | None) -> None:
    def start() -> tuple[Tensor, Any, Callable[[], Tensor]]:
        x = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
        optimizer = steprule.LBFGS([x], lr=0.2, max_iter=3, line_search_fn=search)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = ((x - 1) ** 4).sum() + x.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return x, optimizer, closure

    x, optimizer, closure = start()
    ends = [x.detach().clone()]
    for _ in range(3):
        optimizer.step(closure)
        ends.append(x.detach().clone())
    for call in range(0, 20000, 97):
        x, optimizer, closure = start()
        try:
            if not raised_at(call, lambda o=optimizer, c=closure: o.step(c)):
                return
        except KeyboardInterrupt:
            pass
        taken = int(torch.equal(x.detach(), ends[1]))
        assert torch.equal(x.detach(), ends[taken]), f"call {call}"
        for _ in range(2 - taken):
            optimizer.step(closure)
        assert torch.equal(x.detach(), ends[2]), f"call {call}"
    raise AssertionError("a step of so many calls")


# -- the context itself ------------------------------------------------------------------------


def test_signals_wait_and_are_handled_in_their_order() -> None:
    seen: list[str] = []
    with (
        handled_by(signal.SIGUSR1, lambda *_: seen.append("first")),
        handled_by(signal.SIGTERM, lambda *_: seen.append("second")),
    ):
        with uninterrupted:
            with uninterrupted:
                signal.raise_signal(signal.SIGUSR1)
                signal.raise_signal(signal.SIGTERM)
                signal.raise_signal(signal.SIGUSR1)
            seen.append("inside")
        assert seen == ["inside", "first", "second"]


def test_each_is_handled_though_another_raises() -> None:
    seen: list[int] = []

    def fail() -> None:
        with uninterrupted:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("of the step itself")

    with (
        handled_by(signal.SIGUSR1, stop),
        handled_by(signal.SIGTERM, lambda number, _: seen.append(number)),
        pytest.raises(Stopped) as raised,
    ):
        fail()
    assert seen == [signal.SIGTERM]
    assert isinstance(raised.value.__context__, ValueError)


def test_handlers_are_those_of_before_wherever_an_interrupt_falls() -> None:
    """In the midst of entering and leaving, too."""

    def hold() -> None:
        with uninterrupted:
            pass

    with handled_by(signal.SIGTERM, stop), handled_by(signal.SIGUSR1, stop):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            for call in range(200):
                try:
                    there_was_one = raised_at(call, hold, number)
                except (KeyboardInterrupt, Stopped):
                    there_was_one = True
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
                assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGUSR1) is stop
                if not there_was_one:
                    break
            else:
                raise AssertionError("so many calls")


def test_what_python_does_not_handle_is_left_alone() -> None:
    with handled_by(signal.SIGTERM, signal.SIG_IGN), uninterrupted:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_other_threads_hold_nothing() -> None:
    seen: list[Any] = []

    def look() -> None:
        with uninterrupted:
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_child_of_another_thread_holds_nothing_either() -> None:
    held = Uninterrupted()
    with handled_by(signal.SIGTERM, stop):
        held.__enter__()
        held._main = -1  # as if that were another thread than the one that forks
        held.after_fork()
        assert signal.getsignal(signal.SIGTERM) is stop
        with held:
            assert signal.getsignal(signal.SIGTERM) is not stop


HAMMERED = """
import os, signal, sys, threading, torch, steprule
torch.set_num_threads(2)
params = [torch.zeros(2_000_000, requires_grad=True) for _ in range(3)]  # more than one call takes
for p in params:
    p.grad = torch.ones_like(p)
optimizer = steprule.SGD(params, lr=1.0, momentum=0.5, engine=sys.argv[1])
optimizer.step()
done = threading.Event()
def hammer():
    while not done.wait(0.003):
        os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=hammer)
signal.signal(signal.SIGINT, signal.SIG_IGN)
thread.start()
torn = 0
for _ in range(8):
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        while True:
            optimizer.step()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    ends = {float(x) for p in params for x in (p[0], p[-1])}
    buffers = [s["momentum_buffer"] for s in optimizer.state.values()]
    torn += len(ends) != 1 or len({float(x) for b in buffers for x in (b[0], b[-1])}) != 1
done.set()
thread.join()
print(torn)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")
@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_real_interrupts_of_a_long_step(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HAMMERED, engine],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.split() == ["0"], done.stderr
