"""Train steps compiled whole: the optimizer's step is in the graph, and does what a plain one does.

What is compared went through other graphs, not other rules: within the roundings of
``helpers.TOLERANCES``.
"""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import TOLERANCES, needs_torch, rule_optimizers
from torch import Tensor, nn

import steprule
from steprule.optimizer.compiling import entry
from steprule.optimizer.compiling.prepared import KEPT
from steprule.rules import OPTIMIZERS
from steprule.schedules import linear

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the compiler

CLOSE = TOLERANCES[torch.float32]
STEPS = 3


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    needs_torch("2.13", "a step is one break there")
    # Backward passes are traced where this is on; recompiling is an error.
    with torch._dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


class Graphs:
    """A backend that runs graphs as they are, and keeps them."""

    def __init__(self) -> None:
        self.found: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.found.append(graph)
        return graph.forward

    @property
    def operations(self) -> set[str]:
        """What is ours in them."""
        targets = [node.target for graph in self.found for node in graph.graph.nodes]
        functions = {x.__name__ for x in targets if getattr(x, "__module__", "") == entry.__name__}
        return functions | {str(x) for x in targets if str(x).startswith("steprule.")}


class Run:
    """A small network and its optimizer, and a train step over them."""

    def __init__(self, make: Callable[..., Any], **options: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3, bias=not getattr(make, "only_2d", False))
        self.optimizer = make(self.net.parameters(), **options)
        self.x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))

    def train(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.net(self.x).square().sum()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def compiled(self, backend: Any = "eager") -> Callable[[], Tensor]:
        found: Callable[[], Tensor] = torch.compile(self.train, backend=backend, fullgraph=True)
        return found


def assert_alike(one: Run, other: Run) -> None:
    """The same weights, the same state and the same options."""
    torch.testing.assert_close([*one.net.parameters()], [*other.net.parameters()], **CLOSE)
    saved, expected = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert saved["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(saved["state"], expected["state"], **CLOSE)
    assert list(saved["state"]) == list(expected["state"])


def assert_same_steps(
    ours: Run, plain: Run, compiled: Callable[[Run], Any], step: Callable[[Run], Any]
) -> None:
    """As many as a compiled function needs to meet gradients and state that are there."""
    for _ in range(STEPS):
        compiled(ours), step(plain)
        assert_alike(ours, plain)
        grads = [[p.grad for p in run.net.parameters()] for run in (ours, plain)]
        torch.testing.assert_close(*grads, **CLOSE)


def beside(make: Callable[..., Any], backend: Any = "eager", **options: Any) -> Run:
    """Compare compiled steps, and plain ones after them, with plain ones; return the former."""
    ours, plain = Run(make, **options), Run(make, **options)
    train = ours.compiled(backend)
    for _ in range(STEPS):
        torch.testing.assert_close(train(), plain.train(), **CLOSE)
    assert_alike(ours, plain)
    ours.train(), plain.train()
    assert_alike(ours, plain)
    return ours


# Options by turns, so that each optimizer has one and each option several.
TURNS: tuple[dict[str, Any], ...] = (
    {},
    {"clip_grad_value": 0.1},
    {"ema_decay": 0.9},
    {"on_nonfinite": "skip"},
)


@pytest.mark.parametrize("engine", ["auto", "on tensors"])
@pytest.mark.parametrize("name", rule_optimizers())
def test_every_optimizer_is_in_one_graph(name: str, engine: str) -> None:
    """Gradients, and the steps with them; numbers that change recompile nothing."""
    turn = rule_optimizers().index(name)
    if engine != "auto":
        engine = ("eager", "foreach")[turn % 2]
    backend = "aot_eager" if turn % 6 == 0 else "eager"
    beside(OPTIMIZERS[name.lower()], backend, engine=engine, **TURNS[turn % len(TURNS)])


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("auto", {"_stepped"}),
        ("eager", {"steprule.begin", "_updated"}),
        ("foreach", {"steprule.begin", "_updated"}),
    ],
)
def test_what_is_in_the_graph(engine: str, expected: set[str]) -> None:
    """One graph; on engines of tensors torch's operations, where a backend looks into it."""
    seen = Graphs()
    beside(steprule.Adam, seen, engine=engine)
    assert len(seen.found) == 1
    assert seen.operations == expected
    torch._dynamo.reset()
    lowered: set[str] = set()

    def look(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        for node in graph.graph.nodes:
            lowered.update(map(str, (node.target, *node.args)))
        return graph.forward

    backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=look)
    beside(steprule.Adam, backend, engine=engine)
    assert ("aten.sqrt.default" in lowered) is (engine != "auto")
    assert ("steprule.step.default" in lowered) is (engine == "auto")


@pytest.mark.parametrize("returns_loss", [False, True])
@pytest.mark.parametrize("set_to_none", [None, False])
@pytest.mark.parametrize(
    ("engine", "guard"), [("auto", {}), ("eager", {}), ("eager", {"clip_grad_norm": 1.0})]
)
def test_gradients_that_are_there_before_the_backward_pass(
    engine: str, guard: dict[str, float], set_to_none: bool | None, returns_loss: bool
) -> None:
    """They add up over calls, or begin at 0: a graph writes them as well as the weights."""

    def train(run: Run) -> Tensor | None:
        if set_to_none is not None:
            run.optimizer.zero_grad(set_to_none=set_to_none)
        loss = run.net(run.x).square().sum()
        loss.backward()
        run.optimizer.step()
        return loss.detach() if returns_loss else None

    ours, plain = (Run(steprule.AdamW, engine=engine, lr=0.05, **guard) for _ in range(2))
    torch._dynamo.config.error_on_recompile = False  # where gradients come to be there
    compiled = torch.compile(train, backend="aot_eager", fullgraph=True)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(ours), train(plain), **CLOSE)
        assert_alike(ours, plain)
        grads = [[p.grad for p in run.net.parameters()] for run in (ours, plain)]
        torch.testing.assert_close(*grads, **CLOSE)


def test_inductor() -> None:
    """Its kernels, ours among them, in the right order: weights are read after the step."""

    def then_read(runs: list[Run]) -> list[Tensor]:
        losses = [run.train() for run in runs]
        return losses + [run.net.weight.detach().sum() for run in runs]

    ours, plain = ([Run(steprule.AdamW, engine=e) for e in ("auto", "eager")] for _ in range(2))
    compiled = torch.compile(then_read, fullgraph=True)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(ours), then_read(plain), **CLOSE)
    for one, other in zip(ours, plain, strict=True):
        assert_alike(one, other)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_numbers_are_read_at_each_step(engine: str) -> None:
    """Schedules, schedulers of ours and of torch's, and whoever sets an option: one graph."""
    ours, plain = (
        Run(steprule.SGD, lr=linear(0.1, 0.01, steps=5), momentum=0.9, dampening=0.5, engine=engine)
        for _ in range(2)
    )
    train = ours.compiled()
    for i in range(4):
        torch.testing.assert_close(train(), plain.train(), **CLOSE)
        for run in (ours, plain):
            run.optimizer.param_groups[0]["dampening"] = 0.5 - 0.1 * i
    assert_alike(ours, plain)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_scheduler_recompiles_nothing(engine: str) -> None:
    ours, plain = (Run(steprule.Adam, lr=0.1, engine=engine) for _ in range(2))
    schedulers = [steprule.lr_scheduler.ExponentialLR(r.optimizer, 0.5) for r in (ours, plain)]
    train = ours.compiled()
    for _ in range(4):
        torch.testing.assert_close(train(), plain.train(), **CLOSE)
        for scheduler in schedulers:
            scheduler.step()
    assert_alike(ours, plain)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_lr_as_a_tensor(engine: str) -> None:
    runs = [Run(steprule.Adam, lr=torch.tensor(0.1), engine=engine) for _ in range(2)]
    steps = [runs[0].compiled(), runs[1].train]
    for _ in range(3):
        losses = [step() for step in steps]
        torch.testing.assert_close(*losses, **CLOSE)
        for run in runs:
            run.optimizer.param_groups[0]["lr"].mul_(0.5)
    assert_alike(*runs)


@pytest.mark.parametrize("changes", [False, True])
def test_lr_as_a_tensor_that_the_function_reads_or_changes(changes: bool) -> None:
    """Read, it may stay in the graph; where it is changed, some backends would do so too late."""
    torch._dynamo.config.error_on_recompile = False

    def step(run: Run) -> Tensor:
        lr: Tensor = run.optimizer.param_groups[0]["lr"]
        if changes:
            lr.mul_(0.5)
        run.optimizer.step()
        return lr + 1

    ours, plain = (Run(steprule.Adam, lr=torch.tensor(0.1)) for _ in range(2))
    for run in (ours, plain):
        run.optimizer.param_groups[0]["lr"].mul_(0.9)
        run.train()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=not changes)
    assert_same_steps(ours, plain, compiled, step)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_the_step_alone(engine: str) -> None:
    """`torch.compile(optimizer.step)`, with gradients that are there; and with a closure."""
    ours, plain = (Run(steprule.RMSprop, engine=engine) for _ in range(2))
    step = torch.compile(ours.optimizer.step, backend="eager", fullgraph=True)

    def closure(run: Run) -> Tensor:
        run.optimizer.zero_grad()
        loss = run.net(run.x).square().sum()
        loss.backward()
        return loss

    for _ in range(STEPS):
        closure(ours)
        closure(plain)
        step()
        plain.optimizer.step()
    assert_alike(ours, plain)
    torch._dynamo.reset()
    inside = torch.compile(
        lambda: ours.optimizer.step(lambda: closure(ours)).detach(), backend="eager", fullgraph=True
    )
    for _ in range(2):
        expected = plain.optimizer.step(lambda: closure(plain))
        torch.testing.assert_close(inside(), expected.detach(), **CLOSE)
    assert_alike(ours, plain)


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("how", ["autograd.grad", "func.grad"])
def test_gradients_made_by_functions(how: str, engine: str) -> None:
    def train(run: Run) -> None:
        params = dict(run.net.named_parameters())
        if how == "autograd.grad":
            loss = run.net(run.x).square().sum()
            grads = dict(zip(params, torch.autograd.grad(loss, [*params.values()]), strict=True))
        else:
            grads = torch.func.grad(
                lambda p: torch.func.functional_call(run.net, p, (run.x,)).square().sum()
            )(params)
        for name, param in run.net.named_parameters():
            param.grad = grads[name].detach()
        run.optimizer.step()

    ours, plain = (Run(steprule.Adam, engine=engine) for _ in range(2))
    train(ours), train(plain)  # gradients are there, before and after
    compiled = torch.compile(train, backend="aot_eager", fullgraph=True)
    for _ in range(STEPS):
        compiled(ours)
        train(plain)
    assert_alike(ours, plain)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_loading_goes_on_in_the_same_graph(engine: str) -> None:
    ours, plain = (Run(steprule.Adam, engine=engine) for _ in range(2))
    train = ours.compiled()
    for _ in range(2):
        train(), plain.train()
    for run in (ours, plain):
        saved = copy.deepcopy(run.optimizer.state_dict())
        run.train()
        run.optimizer.load_state_dict(saved)
    train(), plain.train()
    assert_alike(ours, plain)


def test_a_flag_that_changes_is_another_graph() -> None:
    with torch._dynamo.config.patch(error_on_recompile=False):
        ours, plain = (Run(steprule.Adam, engine="eager", weight_decay=0.0) for _ in range(2))
        seen = Graphs()
        train = ours.compiled(seen)
        for key, value in (("maximize", True), ("amsgrad", True), ("weight_decay", 0.1), ("x", 0)):
            train(), plain.train()
            for run in (ours, plain):
                run.optimizer.param_groups[0][key] = value
        assert_alike(ours, plain)
        assert len(seen.found) == 4


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_formats_guards_and_averages(backend: str) -> None:
    options = {"state_format": "int8", "ema_decay": 0.5, "clip_grad_norm": 0.5}
    ours = beside(steprule.AdamW, backend, param_rounding="kahan", **options)
    assert ours.optimizer.last_step.clip_factor is not None
    with ours.optimizer.averaged():
        pass


def test_a_skipped_step_is_skipped() -> None:
    ours = Run(steprule.Adam, on_nonfinite="skip")
    train = ours.compiled("aot_eager")
    train()
    before = copy.deepcopy(ours.optimizer.state_dict()["state"])
    ours.x[0] = float("nan")
    train()
    assert ours.optimizer.last_step.skipped
    torch.testing.assert_close(ours.optimizer.state_dict()["state"], before, rtol=0, atol=0)
    assert all(p.isfinite().all() for p in ours.net.parameters())


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_two_optimizers_in_one_function(engine: str) -> None:
    """As of a generator and its critic, the second of which sees what the first has done."""

    def train(one: Run, other: Run) -> Tensor:
        for run in (one, other):
            run.optimizer.zero_grad()
        (one.net(one.x).sum() - other.net(one.x).square().sum()).backward()
        one.optimizer.step()
        one.optimizer.step()
        other.optimizer.step()
        return one.net.weight.detach().sum() + other.net.weight.detach().sum()

    ours = Run(steprule.Adam, engine=engine), Run(steprule.SGD, momentum=0.9, engine=engine)
    plain = Run(steprule.Adam, engine=engine), Run(steprule.SGD, momentum=0.9, engine=engine)
    compiled = torch.compile(train, backend="aot_eager", fullgraph=True)
    for _ in range(STEPS):
        torch.testing.assert_close(compiled(*ours), train(*plain), **CLOSE)
    for one, other in zip(ours, plain, strict=True):
        assert_alike(one, other)


def test_a_combined_optimizer() -> None:
    def combined(params: Any, **options: Any) -> Any:
        weight, bias = params
        return steprule.combine(
            steprule.Muon([weight], **options), steprule.Adam([bias], **options)
        )

    beside(combined)


class Touched:
    """What leaves the graph: done to a run before it is compiled."""

    @staticmethod
    def hooks(run: Run) -> None:
        run.optimizer.register_step_post_hook(lambda *_: None)

    @staticmethod
    def torchs_scheduler(run: Run) -> None:
        torch.optim.lr_scheduler.ExponentialLR(run.optimizer, 0.5)

    @staticmethod
    def differentiable(run: Run) -> None:
        run.optimizer.param_groups[0]["differentiable"] = True

    @staticmethod
    def wrapped(run: Run) -> None:
        run.optimizer = steprule.Lookahead(steprule.Adam(run.net.parameters()))

    @staticmethod
    def options_changed_within(run: Run) -> None:
        train = run.train

        def changing() -> Tensor:
            run.optimizer.param_groups[0]["lr"] = 0.5
            return train()

        run.train = changing  # type: ignore[method-assign]


class Reading:
    """Train steps that read or change groups, before or after the step."""

    @staticmethod
    def reads_first(run: Run) -> Any:
        lr = run.optimizer.param_groups[0]["lr"]
        run.train()
        return lr

    @staticmethod
    def reads_first_and_clears_by_the_net(run: Run) -> Any:
        lr = run.optimizer.param_groups[0]["lr"]
        run.net.zero_grad()
        run.net(run.x).square().sum().backward()
        run.optimizer.step()
        return lr

    @staticmethod
    def changes_last(run: Run) -> None:
        run.train()
        run.optimizer.param_groups[0]["lr"] *= 0.5


@pytest.mark.parametrize("how", [name for name in vars(Reading) if not name.startswith("_")])
def test_groups_are_read_and_changed_within(how: str) -> None:
    """torch loses gradients, and puts capturable=True into groups, where its optimizers' are."""
    torch._dynamo.config.error_on_recompile = False
    ours, plain = Run(steprule.AdamW), Run(steprule.AdamW)
    step = getattr(Reading, how)
    assert_same_steps(ours, plain, torch.compile(step, backend="eager", fullgraph=True), step)
    torch._dynamo.reset()
    # Gradients are there by now, and whatever the compiler has left at the parameters.
    assert_same_steps(ours, plain, torch.compile(Run.train, backend="aot_eager"), Run.train)


def test_marks_that_lose_gradients_are_taken_away() -> None:
    ours, plain = Run(steprule.Adam, engine="eager"), Run(steprule.Adam, engine="eager")
    for param in ours.net.parameters():
        torch._dynamo.mark_static_address(param, guard=True)
    ours.train(), plain.train()
    compiled = torch.compile(Run.train, backend="eager", fullgraph=True)
    assert_same_steps(ours, plain, compiled, Run.train)


def test_marks_that_come_again_are_refused() -> None:
    ours = Run(steprule.Adam)
    theirs = torch.optim.SGD(ours.net.parameters())
    ours.train()

    def step() -> Any:
        lr = theirs.param_groups[0]["lr"]  # which marks the parameters
        ours.optimizer.step()
        return lr

    before = ours.net.weight.detach().clone()
    with pytest.raises(Exception, match="marks parameters as static"):
        torch.compile(step, backend="eager")()
    torch.testing.assert_close(ours.net.weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("traces_backward", [False, True])
def test_a_scheduler_within_is_left_out(
    traces_backward: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.config.trace_autograd_ops = traces_backward
    torch._dynamo.config.error_on_recompile = False
    ours, plain = Run(steprule.AdamW, lr=0.1), Run(steprule.AdamW, lr=0.1)
    schedulers = {run: steprule.lr_scheduler.StepLR(run.optimizer, 2) for run in (ours, plain)}

    def step(run: Run) -> None:
        run.train()
        schedulers[run].step()

    assert_same_steps(ours, plain, torch.compile(step, backend="eager"), step)
    assert schedulers[ours].state_dict() == schedulers[plain].state_dict()
    assert "Graph break" not in capfd.readouterr().err


def test_an_optimizer_made_within() -> None:
    torch._dynamo.config.trace_autograd_ops = False

    def train(net: nn.Module) -> None:
        optimizer = steprule.SGD(net.parameters(), lr=0.1)
        net(torch.ones(2, 4)).sum().backward()
        optimizer.step()

    ours, plain = Run(steprule.SGD).net, Run(steprule.SGD).net
    torch.compile(train, backend="eager")(ours), train(plain)
    torch.testing.assert_close([*ours.parameters()], [*plain.parameters()], **CLOSE)


@pytest.mark.parametrize(("key", "value"), [("clip_grad_value", 0.1), ("ema_decay", 0.9)])
def test_an_option_that_becomes_none_is_another_graph(key: str, value: float) -> None:
    torch._dynamo.config.error_on_recompile = False
    ours, plain = (Run(steprule.Adam, engine="eager", **{key: value}) for _ in range(2))
    ours.train(), plain.train()
    step = torch.compile(ours.optimizer.step, backend="eager")
    for now in (value, None, value / 2):
        for run in (ours, plain):
            run.optimizer.param_groups[0][key] = now
        step(), plain.optimizer.step()
        assert_alike(ours, plain)


@steprule.rule(velocity=steprule.Slot(when="inertia"))
def inert(param: Any, grad: Any, velocity: Any, *, lr: Any, inertia: Any) -> Any:
    """Take steps, with inertia if it is not 0."""
    if velocity is None:
        return param - lr * grad, None
    velocity = inertia * velocity + grad
    return param - lr * velocity, velocity


def test_so_is_an_option_of_a_rule_of_ones_own_that_becomes_0() -> None:
    torch._dynamo.config.error_on_recompile = False
    make = steprule.make_optimizer(inert, lr=0.1, inertia=0.9)
    ours, plain = Run(make, engine="eager"), Run(make, engine="eager")
    ours.train(), plain.train()
    step = torch.compile(ours.optimizer.step, backend="eager")
    for now in (0.8, 0, 0.7):
        for run in (ours, plain):
            run.optimizer.param_groups[0]["inertia"] = now
        step(), plain.optimizer.step()
        assert_alike(ours, plain)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_an_error_within_leaves_autograd_on(engine: str) -> None:
    guard = {"on_nonfinite": "raise"} if engine == "auto" else {}
    ours = Run(steprule.Adam, engine=engine, ema_decay=0.5, **guard)
    ours.train()
    step = torch.compile(ours.optimizer.step, backend="eager")
    step()
    if guard:
        assert ours.net.weight.grad is not None
        ours.net.weight.grad.fill_(float("inf"))
        with pytest.raises(RuntimeError, match="gradients are not finite"):
            step()
        assert torch.is_grad_enabled()
    with ours.optimizer.averaged(), pytest.raises(RuntimeError, match="averages"):
        step()
    assert torch.is_grad_enabled()


def test_a_compiler_that_is_not_known_has_steps_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steprule.optimizer.compiling.compiler.UNKNOWN", "moved")
    ours = Run(steprule.Adam)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="moved"):
        ours.compiled()()


BREAKS = [name for name in vars(Touched) if not name.startswith("_")]


@pytest.mark.parametrize("how", BREAKS)
def test_what_breaks_the_graph_is_right_all_the_same(how: str) -> None:
    ours, plain = Run(steprule.Adam), Run(steprule.Adam)
    for run in (ours, plain):
        getattr(Touched, how)(run)
    # A break after zero_grad() and a traced backward pass mixes up gradients in torch 2.13.
    torch._dynamo.config.trace_autograd_ops = False
    torch._dynamo.config.error_on_recompile = False
    train = torch.compile(ours.train, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(train(), plain.train(), **CLOSE)
    torch.testing.assert_close([*ours.net.parameters()], [*plain.net.parameters()], **CLOSE)


@pytest.mark.parametrize(
    ("how", "reason"), [("hooks", "hooks see what"), ("options_changed_within", "changes a group")]
)
def test_a_break_says_why(how: str, reason: str) -> None:
    ours = Run(steprule.Adam)
    getattr(Touched, how)(ours)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        ours.compiled()()


@pytest.mark.parametrize(
    ("make", "options"), [(steprule.ScheduleFreeSGD, {}), (steprule.AdamW, {"ema_decay": 0.9})]
)
def test_weights_that_are_changed_before_their_first_step(
    make: Callable[..., Any], options: dict[str, Any]
) -> None:
    """State that starts at them starts at what they have become."""
    torch._dynamo.config.error_on_recompile = False
    ours, plain = (Run(make, engine="eager", **options) for _ in range(2))

    def shrink_and_step(run: Run) -> None:
        with torch.no_grad():
            for param in run.net.parameters():
                param.mul_(0.9)
        run.optimizer.step()

    for run in (ours, plain):
        for param in run.net.parameters():
            param.grad = torch.ones_like(param)
    if options:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="take a plain step first"):
            torch.compile(shrink_and_step, backend="eager", fullgraph=True)(ours)
    compiled = torch.compile(shrink_and_step, backend="eager")
    for _ in range(STEPS):
        compiled(ours), shrink_and_step(plain)
        assert_alike(ours, plain)


def test_flags_that_contradict_each_other_are_refused_as_by_a_plain_step() -> None:
    torch._dynamo.config.error_on_recompile = False
    ours = Run(steprule.AdamW, engine="eager")
    ours.train()
    step = torch.compile(ours.optimizer.step, backend="eager")
    step()
    ours.optimizer.param_groups[0]["foreach"] = True
    with pytest.raises(ValueError, match="engine='eager' contradicts foreach=True"):
        step()


def test_optimizers_are_made_and_step_while_another_thread_compiles() -> None:
    made: list[steprule.Optimizer] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        # The compiler is in the midst of its work, in its own thread.
        thread = threading.Thread(target=make_one)
        thread.start()
        thread.join()
        return graph.forward

    def make_one() -> None:
        param = torch.ones(3, requires_grad=True)
        optimizer = steprule.AdamW([param])
        scheduler = steprule.lr_scheduler.StepLR(optimizer, 1)
        optimizer.zero_grad()
        param.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        made.append(optimizer)

    assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1)) == 2
    (optimizer,) = made
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_sparse_gradients() -> None:
    torch._dynamo.config.trace_autograd_ops = False
    torch._dynamo.config.error_on_recompile = False
    runs = []
    for compiles in (False, True):
        torch.manual_seed(0)
        net = nn.Embedding(10, 3, sparse=True)
        optimizer = steprule.SGD(net.parameters(), lr=0.1)

        def train(net: Any = net, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            net(torch.tensor([1, 3])).square().sum().backward()
            optimizer.step()

        step = torch.compile(train, backend="eager") if compiles else train
        for _ in range(2):
            step()
        runs.append(net.weight.detach())
    torch.testing.assert_close(*runs, **CLOSE)


def test_what_a_plain_step_refuses() -> None:
    """It is refused with the same error, and nothing is changed."""
    run = Run(steprule.Adam)
    run.optimizer.param_groups[0]["lr"] = "much"
    before = run.net.weight.detach().clone()
    step = torch.compile(run.optimizer.step, backend="eager")
    run.net.weight.grad = torch.ones_like(run.net.weight)
    with pytest.raises(TypeError, match="lr of group 0 must be a number"):
        step()
    torch.testing.assert_close(run.net.weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_compiled_step_keeps_nothing_alive(engine: str) -> None:
    run = Run(steprule.Adam, engine=engine)
    train = run.compiled()
    train()
    optimizer, param = weakref.ref(run.optimizer), weakref.ref(run.net.weight)
    del run, train
    torch._dynamo.reset()
    gc.collect()
    assert optimizer() is None
    assert param() is None


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_nor_a_parameter_that_is_taken_out(engine: str) -> None:
    """As without a compiler, the next step lets go of it."""
    run = Run(steprule.Adam, engine=engine)
    torch.compile(run.optimizer.step, backend="eager")()
    run.compiled()()
    assert run.net.bias is not None
    bias, param = weakref.ref(run.net.bias), run.net.bias
    run.net.bias = None
    run.optimizer.param_groups[0]["params"] = [run.net.weight]
    del run.optimizer.state[param], param
    torch._dynamo.reset()
    run.compiled()()
    gc.collect()
    assert bias() is None


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_compilations_do_not_pile_up(engine: str) -> None:
    run = Run(steprule.Adam, engine=engine)
    run.train()
    for _ in range(3):
        torch._dynamo.reset()
        torch.compile(run.optimizer.step, backend="eager")()
    assert len(run.optimizer.__dict__[KEPT]) == 1
