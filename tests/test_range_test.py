"""``lr_range_test`` and ``steprule find-lr``: what they find, and that nothing is left behind."""

from __future__ import annotations

import functools
import random
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import steprule
from steprule import lr_range_test
from steprule.cli import main
from steprule.range_test.suggestion import smoothed, suggestion_of
from steprule.schedules import linear


class Net(nn.Module):
    """With buffers of running averages, random numbers, and a part that is in another mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.2)
        self.last = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("positions", torch.arange(1).expand(3))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1  # another tensor, where a normalisation writes into its own
        return self.last(self.dropout(torch.relu(self.norm(self.first(x)))))


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.norm.eval()
    return model


def rows() -> tuple[Tensor, Tensor]:
    x = torch.randn(48, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def batches() -> list[tuple[Tensor, Tensor]]:
    x, y = rows()
    return list(zip(x.split(16), y.split(16), strict=True))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    random.random()
    np.random.rand()  # noqa: NPY002  # the global generator, which must be put back
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def frozen(value: Any, seen: set[int]) -> Any:
    """Everything in a value, bit for bit, with the identity of each tensor and container."""
    if isinstance(value, Tensor):
        raw = value.detach().clone().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return id(value), value.dtype, tuple(value.shape), raw
    if id(value) in seen:
        return id(value)
    if isinstance(value, dict):
        inside = {id(k) if isinstance(k, Tensor) else str(k): v for k, v in value.items()}
        return id(value), {k: frozen(v, seen | {id(value)}) for k, v in inside.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value), [frozen(x, seen | {id(value)}) for x in value]
    if isinstance(value, torch.Generator):
        return frozen(value.get_state(), seen)[2:]
    return value if isinstance(value, (int, float, str, bool)) else id(value)


def all_of(model: nn.Module, optimizer: Any, loader: Any = None) -> Any:
    """What must be the same before and after."""
    plan = ("_plan", "_memory", "_written")  # made anew when there is use for it
    layers = [optimizer, *([optimizer.optimizer] if hasattr(optimizer, "optimizer") else [])]
    of_layers = [{k: v for k, v in vars(layer).items() if k not in plan} for layer in layers]
    return (
        frozen(dict(model.named_parameters()), set())[1],
        [frozen(module._buffers, set()) for module in model.modules()],
        [module.training for module in model.modules()],
        [None if p.grad is None else frozen(p.grad, set()) for p in model.parameters()],
        [frozen(optimizer.state, set()), frozen(optimizer.param_groups, set())],
        [frozen(attributes, set())[1] for attributes in of_layers],
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),  # noqa: NPY002
        None if loader is None else loader.generator.get_state().tolist(),
    )


def steps(model: nn.Module, optimizer: Any, count: int = 3) -> None:
    for batch in batches()[:count]:

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            return loss

        optimizer.step(closure)


def groups_of(model: Net) -> list[dict[str, Any]]:
    return [
        {"params": [*model.first.parameters(), *model.norm.parameters()], "lr": 0.01},
        {"params": list(model.last.parameters()), "lr": 0.1},
    ]


Make = Callable[[Net], Any]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda m: steprule.AdamW(groups_of(m), ema_decay=0.9),
    "AdamW-foreach-8-bit": lambda m: steprule.AdamW(
        groups_of(m), engine="foreach", state_format="int8", state_format_min_size=0
    ),
    "SGD-guarded": lambda m: steprule.SGD(
        groups_of(m), momentum=0.9, clip_grad_norm=1.0, on_nonfinite="raise"
    ),
    "scheduled": lambda m: steprule.Adam(m.parameters(), lr=linear(0.1, 0, steps=9).warmup(4)),
    "tensor-lr": lambda m: steprule.Adam(m.parameters(), lr=torch.tensor(0.1)),
    "LBFGS": lambda m: steprule.LBFGS(m.parameters(), line_search_fn="strong_wolfe", max_iter=3),
    "combined": lambda m: steprule.combine(
        steprule.Muon([m.first.weight], lr=0.1),
        steprule.AdamW([m.last.weight, *m.norm.parameters()], lr=0.01),
    ),
    "torch.SGD": lambda m: torch.optim.SGD(groups_of(m), momentum=0.9),
    "torch.Adam": lambda m: torch.optim.Adam(groups_of(m), amsgrad=True),
    "torch.LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3),
    "SAM": lambda m: steprule.SAM(steprule.SGD(groups_of(m), momentum=0.9)),
    "Lookahead": lambda m: steprule.Lookahead(steprule.SGD(groups_of(m), momentum=0.9), k=2),
    "ScheduleFree": lambda m: steprule.ScheduleFreeAdamW(groups_of(m)),
}


@pytest.mark.parametrize(
    ("name", "is_fresh"),
    [*((name, False) for name in OPTIMIZERS), ("AdamW", True), ("torch.SGD", True)],
)
def test_all_is_left_bit_for_bit_and_training_goes_on(name: str, is_fresh: bool) -> None:
    model, other = net(), net()
    optimizer, untouched = OPTIMIZERS[name](model), OPTIMIZERS[name](other)
    if not is_fresh:
        for one, its in ((model, optimizer), (other, untouched)):
            torch.manual_seed(3)
            steps(one, its)
    before = all_of(model, optimizer)
    found = lr_range_test(model, optimizer, loss_of, batches(), lr_min=1e-4, steps=12)
    assert len(found.losses) >= 5
    assert all_of(model, optimizer) == before
    for one, its in ((model, optimizer), (other, untouched)):
        torch.manual_seed(4)
        steps(one, its)
    assert [p.tolist() for p in model.parameters()] == [p.tolist() for p in other.parameters()]


class Stop(Exception):  # noqa: N818
    """What a loss raises."""


@pytest.mark.parametrize(
    ("name", "error"),
    [
        *(("AdamW", error) for error in (Stop, KeyboardInterrupt, "signal")),
        *((name, "signal") for name in ("LBFGS", "torch.Adam", "torch.LBFGS")),
    ],
)
def test_whatever_ends_it_leaves_all_as_it_was(name: str, error: Any) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model)
    steps(model, optimizer)
    calls = 0

    def failing(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 7:
            if error == "signal":
                signal.raise_signal(signal.SIGINT)
            raise error
        return loss_of(model, batch)

    before, handler = all_of(model, optimizer), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt if error == "signal" else error) as caught:
            lr_range_test(model, optimizer, failing, batches(), steps=40)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert all_of(model, optimizer) == before
    if error is not Stop:
        partial = caught.value.result  # type: ignore[attr-defined]
        assert 1 <= len(partial.losses) < 7
        assert partial.stopped == "the sweep was interrupted"


def test_a_loader_draws_the_same_batches_afterwards() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(*rows()), 16, shuffle=True, generator=generator)
    before = all_of(model, optimizer, loader)
    lr_range_test(model, optimizer, nn.CrossEntropyLoss(), loader, steps=7)
    assert all_of(model, optimizer, loader) == before


def test_what_was_in_eval_mode_is_in_it_again() -> None:
    model = net()
    optimizer = steprule.ScheduleFreeAdamW(groups_of(model))
    steps(model, optimizer)
    model.eval()
    optimizer.eval()  # which moves the parameters to their average
    before = all_of(model, optimizer)
    found = lr_range_test(model, optimizer, loss_of, batches(), steps=8)
    assert len(found.losses) == 8
    assert all_of(model, optimizer) == before


def test_gradients_that_were_there_stay() -> None:
    model = net()
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    loss_of(model, batches()[0]).backward()
    before = all_of(model, optimizer)
    lr_range_test(model, optimizer, loss_of, batches(), steps=5)
    assert all_of(model, optimizer) == before


class Several(torch.optim.Optimizer):
    """A wrapper of anybody's that holds its optimizers in a list, or in a dict."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside
        every = list(inside.values()) if isinstance(inside, dict) else inside
        groups = [group for one in every for group in one.param_groups]
        super().__init__([{"params": g["params"], "lr": g["lr"]} for g in groups], {})

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = closure()
        for one in self.inside.values() if isinstance(self.inside, dict) else self.inside:
            one.step()
        return loss


@pytest.mark.parametrize("is_dict", [False, True])
def test_optimizers_in_lists_and_dicts_of_a_wrapper_are_as_they_were(is_dict: bool) -> None:
    model = net()
    inside = [torch.optim.Adam(model.first.parameters()), steprule.AdamW(model.last.parameters())]
    optimizer = Several(dict(enumerate(inside)) if is_dict else inside)
    steps(model, optimizer)
    before = [all_of(model, one) for one in (optimizer, *inside)]
    lr_range_test(model, optimizer, loss_of, batches(), steps=5)
    assert [all_of(model, one) for one in (optimizer, *inside)] == before


@pytest.mark.parametrize("library", [steprule, torch.optim], ids=["steprule", "torch"])
def test_what_users_hang_on_a_step_is_not_called(library: Any) -> None:
    model = nn.Linear(4, 3)
    optimizer = library.SGD(model.parameters(), lr=0.1)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer.register_step_post_hook(lambda *_: averaged.update_parameters(model))
    lr_range_test(model, optimizer, loss_of, batches(), steps=5)
    assert averaged.n_averaged == 0
    steps(model, optimizer, count=2)
    assert averaged.n_averaged == 2


class Centred(nn.Module):
    """A criterion with a buffer, a normalisation, and a weight that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.centre.lerp_(x.detach().mean(0), 0.1)
        return nn.functional.cross_entropy(self.norm(x - self.centre) * self.weight, y)


@pytest.mark.parametrize("wrapped", [lambda c: c, functools.partial])
def test_a_criterion_is_as_it_was_too(wrapped: Any) -> None:
    model, criterion = net(), Centred()
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    before = all_of(criterion, optimizer)
    lr_range_test(model, optimizer, wrapped(criterion), batches(), steps=5)
    assert all_of(criterion, optimizer) == before


# ---- what it does --------------------------------------------------------------------------------
def quadratic() -> tuple[nn.Module, Any, Any]:
    """f(w) = w**2 / 2 of a weight at 1: a step is w * (1 - lr), diverging above 2."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    return model, (lambda m, _: (m.weight**2).sum() / 2), [None]


def test_losses_are_those_of_steps_at_rising_rates() -> None:
    model, loss, data = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = lr_range_test(model, optimizer, loss, data, lr_min=1.1e-3, lr_max=1100, steps=61)
    weight = 1.0
    for number, (lr, value) in enumerate(zip(found.lrs, found.losses, strict=True)):
        assert lr == pytest.approx(1.1e-3 * 10 ** (number / 10), rel=1e-12)
        # float32 has 24 bits: 61 products may be off by as many halves of its last one.
        assert value == pytest.approx(weight**2 / 2, rel=1e-5)
        weight *= 1 - lr
    assert found.stopped.startswith("the loss diverged")
    assert found.suggestion is not None
    assert 0.05 < found.suggestion < 1


def test_a_criterion_is_of_the_models_output_and_the_target() -> None:
    found = []
    for loss_fn in (
        nn.CrossEntropyLoss(),
        nn.functional.cross_entropy,
        functools.partial(nn.functional.cross_entropy, reduction="mean"),
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]),
    ):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        found.append(lr_range_test(model, optimizer, loss_fn, batches(), steps=5).losses)
    assert found[0] == found[1] == found[2] == found[3]
    with pytest.raises(TypeError, match=r"criterion CrossEntropyLoss, for batches \(x, y\)"):
        lr_range_test(model, optimizer, nn.CrossEntropyLoss(), [torch.ones(2, 4)])


def test_groups_keep_their_proportions() -> None:
    model = net()
    optimizer = torch.optim.SGD(groups_of(model), lr=1.0)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)  # as a warm-up leaves it
    seen: list[list[float]] = []

    def noting(model: nn.Module, batch: Any) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return loss_of(model, batch)

    found = lr_range_test(model, optimizer, noting, batches(), steps=9)
    assert [lr for _, lr in seen] == pytest.approx(list(found.lrs))
    assert all(a == pytest.approx(0.1 * b) for a, b in seen)


def test_a_loss_that_explodes_ends_it_and_is_said() -> None:
    model, _, data = quadratic()
    optimizer = steprule.SGD(model.parameters(), lr=0.1)

    def cliff(model: Any, batch: Any) -> Tensor:
        return model.weight.sum() * (float("nan") if optimizer.param_groups[0]["lr"] > 0.1 else 1)

    found = lr_range_test(model, optimizer, cliff, data, steps=30)
    assert found.stopped.startswith("the loss was nan at lr 0.1")
    assert max(found.lrs) <= 0.1


def test_gradients_that_are_not_finite_end_it() -> None:
    model, _, data = quadratic()
    optimizer = steprule.SGD(model.parameters(), lr=0.1, on_nonfinite="raise")

    def steep(model: Any, batch: Any) -> Tensor:
        factor = float("inf") if optimizer.param_groups[0]["lr"] > 0.1 else 1.0
        return (model.weight.clamp(max=9) * 1.0).sum() + (model.weight - model.weight.detach()).mul(
            factor
        ).nan_to_num(0).sum()

    found = lr_range_test(model, optimizer, steep, data, steps=30)
    assert found.stopped.startswith("the gradients were not finite at lr")


def test_no_suggestion_where_the_loss_never_fell() -> None:
    model, _, data = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = lr_range_test(model, optimizer, lambda m, _: (m.weight * 0).sum() + 1, data, steps=20)
    assert found.suggestion is None
    assert "never fell" in found.reason
    assert "suggestion: none" in str(found)
    one = lr_range_test(model, optimizer, lambda m, _: m.weight.sum(), iter([1, 2]), steps=20)
    assert (one.suggestion, one.stopped) == (None, "data ended after 2 batches")
    assert "too few steps" in one.reason


@pytest.mark.parametrize(
    ("ends", "given", "says"),
    [
        ("data", {}, "still falling at the end, .* pass data that can be gone through again"),
        ("all", {"lr_max": 1e-4}, "still falling at the end, .* raise lr_max"),
        ("interrupted", {}, "still falling at the end, .* let it run further"),
        ("flat", {}, r"never fell \(not at all\); raise lr_max: is the loss"),
        ("few", {"steps": 3}, "too few steps to tell: 3, at least 5 are needed; take more steps"),
        ("rises", {}, r"never fell \(not at all\): is lr_min low enough"),
        ("diverges", {}, r"never fell .*: is lr_min low enough, the loss"),
    ],
)
def test_a_sweep_that_came_near_no_lr_suggests_none(ends: str, given: Any, says: str) -> None:
    model, loss, data = quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = iter(range(100))

    def value(m: Any, batch: Any) -> Tensor:
        number = next(calls)
        if ends == "interrupted" and number == 60:
            raise KeyboardInterrupt
        exact: Tensor = loss(m, batch)
        if ends == "diverges":
            return exact * 10**number
        if ends == "rises":
            return exact * 0 + 1 + number / 100
        return exact * 0 + 1 if ends == "flat" else exact

    try:
        found = lr_range_test(
            model, optimizer, value, iter([0] * 60) if ends == "data" else data, **given
        )
    except KeyboardInterrupt as error:
        found = error.result  # type: ignore[attr-defined]
    assert found.suggestion is None
    assert re.search(says, found.reason)


def test_noise_alone_is_no_fall_and_a_fall_within_noise_is_found() -> None:
    lrs = np.geomspace(1e-7, 10, 100).tolist()
    fall = 1 - 1 / (1 + np.exp(-(np.arange(100) - 50) / 5))
    found: dict[float, list[Any]] = {0.0: [], 8.0: []}
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=100)
        for level, seen in found.items():
            losses = (9 + noise + level * fall).tolist()
            seen.append(suggestion_of(lrs, losses, smoothed(losses, 5), 5)[0])
    assert sum(lr is not None for lr in found[0.0]) <= 1
    # Steepest at step 50; noise in a mean of eleven losses may move it by as many.
    assert all(lr is not None and lrs[38] < lr < lrs[62] for lr in found[8.0])


def test_the_smoothed_loss_is_centred_and_of_a_constant_that_constant() -> None:
    assert smoothed([2.0] * 7, 3).tolist() == [2.0] * 7
    assert smoothed([3.0, 2.0, 1.0], 0).tolist() == [3.0, 2.0, 1.0]
    line = np.linspace(5, 1, 21)
    np.testing.assert_allclose(smoothed(line.tolist(), 4)[4:-4], line[4:-4], rtol=1e-12)
    assert smoothed([1.0, 1.0, 1.0, 0.0, 1e30], 1)[-2] < 1  # what explodes is cut off


def test_the_picture_has_axes_and_a_legend(tmp_path: Path) -> None:
    model, loss, data = quadratic()
    found = lr_range_test(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, data)
    figure = found.plot(tmp_path / "lr.png")
    (axes,) = figure.axes
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "learning rate (log scale)"
    assert axes.get_ylabel() == "training loss"
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 3
    assert "steps, lr 1e-07 to" in str(found)


# ---- on the command line -------------------------------------------------------------------------
PROBLEM = """
import torch
calls = 0

def make_problem(seed):
    model = torch.nn.Linear(4, 1)
    x = torch.randn(64, 4)
    return model, lambda m, b: ((m(b[0])[:, 0] - b[1]) ** 2).mean(), (x, x.sum(1))

def interrupted():
    model, loss, data = make_problem(0)

    def failing(m, b):
        global calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return loss(m, b)

    return model, failing, data
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROBLEM)
    return tmp_path


def test_find_lr_suggests_one_for_the_users_own_problem(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "find-lr mine.py:make_problem --optimizer sgd+momentum=0.5@eager --steps 40"
    assert main(shlex.split(f"{command} --batch-size 16 --out lr.svg")) == 0
    out, err = capsys.readouterr()
    assert "suggestion: lr 0." in out
    assert "wrote lr.svg" in out
    assert "\x1b" not in out + err
    assert (folder / "lr.svg").read_text().rstrip().endswith("</svg>")
    assert main(shlex.split(f"{command} --batch-size 16")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-2]  # the same seed


def test_find_lr_interrupted_shows_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "find-lr mine.py:interrupted --optimizer torch:sgd --steps 40"
    assert main(shlex.split(command)) == 130
    assert "7 of 40 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--optimizer adamx", "did you mean 'adamax'"),
        ("--optimizer sgd,adam", "one at a time"),
        (
            "--optimizer sgd --lr-min 1 --lr-max .1",
            "--lr-max must be above --lr-min, got 0.1 and 1",
        ),
        ("--optimizer bogus", "--optimizer: "),
        ("--optimizer sgd --out lr.gif", ".png, .svg, .pdf"),
        ("--optimizer sgd --steps 2", "from 5 to"),
        ("--optimizer soap --engine numba", "numba"),
    ],
)
def test_find_lr_refuses_in_one_line(
    arguments: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["find-lr", "mine.py:make_problem", *shlex.split(arguments)]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Leave the global generators to others as they were; small nets are fastest on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    yield
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002
    torch.set_num_threads(threads)
