"""``log_to``: what is written, when, and to whom."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from processes import ranks
from rank_programs import step_logs
from torch import Tensor, nn

import steprule
from steprule import log_to
from steprule.schedules import linear

# What a step changes is rounded to float32.
CLOSE = {"rel": 1e-5}


class Board:
    """As a SummaryWriter is written to."""

    def __init__(self) -> None:
        self.written: dict[int, dict[str, float]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written.setdefault(step, {})[tag] = value


class Run:
    """As a run of wandb; or of Comet, by the other name."""

    def __init__(self, name: str) -> None:
        self.written: dict[int, dict[str, float]] = {}
        setattr(self, name, self.take)

    def take(self, values: dict[str, float], *, step: int) -> None:
        self.written[step] = values


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def groups_of(model: nn.Sequential) -> list[dict[str, Any]]:
    return [
        {"params": list(model[0].parameters()), "lr": 0.1, "name": "body"},
        {"params": list(model[2].parameters()), "lr": 0.01, "name": "head"},
    ]


def backward(model: nn.Module, step: int = 0) -> Tensor:
    model.zero_grad()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    loss = (model(x) ** 2).mean()
    loss.backward()
    return loss


def norm(tensors: Any) -> float:
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


def take(model: nn.Module, optimizer: Any, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        optimizer.step(lambda step=step: backward(model, step))


Make = Callable[[Any], Any]
OPTIMIZERS: dict[str, Make] = {
    "AdamW": lambda p: steprule.AdamW(p),
    "SGD-foreach": lambda p: steprule.SGD(p, momentum=0.9, engine="foreach"),
    "AdamW-guarded": lambda p: steprule.AdamW(p, clip_grad_norm=0.01),
    "torch.AdamW": lambda p: torch.optim.AdamW(p),
    "torch.SGD": lambda p: torch.optim.SGD(p, momentum=0.9),
    "SAM": lambda p: steprule.SAM(steprule.SGD(p), rho=1e-6),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_numbers_are_those_of_the_step(name: str) -> None:
    model, board = net(), Board()
    optimizer = OPTIMIZERS[name](groups_of(model))
    log_to(board, optimizer, every=3)
    take(model, optimizer, 2)
    assert board.written == {}
    before = [[p.detach().clone() for p in g["params"]] for g in optimizer.param_groups]
    take(model, optimizer, 1, first=2)
    (values,) = board.written.values()
    assert [*board.written] == [3]
    total = 0.0
    for group, start in zip(optimizer.param_groups, before, strict=True):
        params, label = group["params"], group["name"]
        changes = [p.detach() - s for p, s in zip(params, start, strict=True)]
        gradient = norm(p.grad for p in params)
        total += gradient**2
        assert values[f"optimizer/lr/{label}"] == group["lr"]
        assert values[f"optimizer/weight_norm/{label}"] == pytest.approx(norm(params), **CLOSE)
        assert values[f"optimizer/grad_norm/{label}"] == pytest.approx(gradient, **CLOSE)
        ratio = norm(changes) / norm(start)
        assert values[f"optimizer/update_ratio/{label}"] == pytest.approx(ratio, **CLOSE)
    assert values["optimizer/grad_norm"] == pytest.approx(math.sqrt(total), **CLOSE)
    assert len(values) == (10 if name == "AdamW-guarded" else 9)


def test_every_kind_of_writer_gets_the_same() -> None:
    model, board = net(), Board()
    called: dict[int, dict[str, float]] = {}
    runs = [Run("log"), Run("log_metrics")]
    optimizer = steprule.AdamW(model.parameters())
    for writer in (board, *runs, lambda values, step: called.update({step: values})):
        log_to(writer, optimizer, every=2, prefix="")
    take(model, optimizer, 5)
    assert [*called] == [2, 4]
    assert set(called[2]) == {"lr", "weight_norm", "grad_norm", "update_ratio"}
    assert board.written == called == runs[0].written == runs[1].written


def test_tensorboard_takes_it(tmp_path: Any) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model, writer = net(), tensorboard.SummaryWriter(str(tmp_path))
    optimizer = steprule.AdamW(model.parameters())
    log_to(writer, optimizer, every=1)
    take(model, optimizer, 3)
    writer.close()
    read = events.EventAccumulator(str(tmp_path))
    read.Reload()
    assert [event.step for event in read.Scalars("optimizer/lr")] == [1, 2, 3]


def test_the_lr_is_that_of_the_step_with_schedules_and_schedulers() -> None:
    lr = linear(0.1, 0, steps=4)
    model, board, other = net(), Board(), Board()
    optimizer = steprule.SGD(model.parameters(), lr=lr)
    log_to(board, optimizer, every=1)
    take(model, optimizer, 4)
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = steprule.lr_scheduler.from_schedule(plain, lr)
    log_to(other, plain, every=1)
    for step in range(4):
        take(model, plain, 1, first=step)
        scheduler.step()
    for one in (board, other):
        assert [values["optimizer/lr"] for values in one.written.values()] == list(lr(range(4)))


def test_it_changes_nothing_of_the_run() -> None:
    ends = []
    for is_logged in (False, True):
        model = net()
        optimizer = steprule.AdamW(groups_of(model))
        if is_logged:
            log_to(Board(), optimizer, every=2)
        take(model, optimizer, 6)
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_nothing_is_copied_between_the_steps_that_are_written() -> None:
    model = net()
    optimizer = steprule.AdamW(model.parameters())
    log = log_to(Board(), optimizer, every=3)
    taken: list[bool] = []
    optimizer.register_step_pre_hook(lambda *_: taken.append(log._before is not None))
    take(model, optimizer, 6)
    assert taken == [False, False, True, False, False, True]
    assert log._before is None


def test_removed_it_writes_no_more_and_keeps_nothing_alive() -> None:
    model, board = net(), Board()
    optimizer = steprule.AdamW(model.parameters())
    log = log_to(board, optimizer, every=1)
    take(model, optimizer, 1)
    log.remove()
    log.remove()
    take(model, optimizer, 2)
    assert [*board.written] == [1]
    assert not optimizer._has_step_hooks()
    log = log_to(board, optimizer, every=1)
    gone = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


# ---- the number of steps -------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["AdamW", "torch.AdamW", "torch.SGD"])
def test_steps_go_on_counting_in_a_resumed_run(name: str) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](groups_of(model))
    log = log_to(Board(), optimizer, every=2)
    take(model, optimizer, 5)
    states = optimizer.state_dict(), log.state_dict()

    for is_loaded_before in (True, False):
        again, board = OPTIMIZERS[name](groups_of(net())), Board()
        if is_loaded_before:
            again.load_state_dict(states[0])
        resumed = log_to(board, again, every=2)
        if not is_loaded_before:
            again.load_state_dict(states[0])
        if name == "torch.SGD":  # whose state has no count
            assert resumed.step == 0
            resumed.load_state_dict(states[1])
        assert resumed.step == 5
        take(model, again, 3, first=5)
        assert [*board.written] == [6, 8]
    assert log_to(board, again, start=40).step == 40
    with pytest.raises(TypeError, match=r"state_dict\(\)"):
        log.load_state_dict({"steps": 3})


def test_the_state_of_an_optimizer_that_has_not_stepped_is_of_step_0() -> None:
    model = net()
    for name, expected in (("AdamW", 0), ("torch.SGD", 3)):  # SGD's state never tells
        optimizer = OPTIMIZERS[name](groups_of(model))
        fresh = optimizer.state_dict()
        log = log_to(Board(), optimizer)
        take(model, optimizer, 3)
        optimizer.load_state_dict(fresh)
        assert log.step == expected


def test_what_is_tried_and_undone_is_not_written() -> None:
    model, board = net(), Board()
    optimizer = steprule.AdamW(model.parameters())
    log = log_to(board, optimizer, every=1)
    data = [torch.randn(8, 3)]
    steprule.lr_range_test(model, optimizer, lambda m, x: (m(x) ** 2).mean(), data, steps=5)
    assert (board.written, log.step) == ({}, 0)


# ---- steps that are passed over ------------------------------------------------------------------
def test_a_skipped_step_is_written_as_such_at_once() -> None:
    model, board = net(), Board()
    optimizer = steprule.AdamW(model.parameters(), on_nonfinite="skip", clip_grad_norm=1.0)
    log_to(board, optimizer, every=4)
    for step in range(1, 9):
        backward(model, step)
        if step in (3, 8):
            next(model.parameters()).grad.fill_(float("nan"))
        optimizer.step()
    assert [*board.written] == [3, 4, 8]
    assert board.written[3] == {"optimizer/skipped": 1.0}
    assert board.written[4]["optimizer/skipped"] == 0.0
    assert board.written[8]["optimizer/skipped"] == 1.0
    assert "optimizer/update_ratio" in board.written[4]
    assert "optimizer/update_ratio" not in board.written[8]
    assert math.isnan(board.written[8]["optimizer/grad_norm"])


@pytest.mark.parametrize("name", ["AdamW", "torch.AdamW"])
def test_gradients_are_shown_without_a_scalers_scale(name: str) -> None:
    def training(is_scaled: bool) -> Board:
        model, board = net(), Board()
        optimizer = OPTIMIZERS[name](model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=is_scaled)
        log_to(board, optimizer, every=1)
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            scaler.scale((model(x) ** 2).mean()).backward()
            scaler.step(optimizer)
            scaler.update()
        return board

    plain, scaled = training(False), training(True)
    for step, values in plain.written.items():
        tag = "optimizer/grad_norm"
        assert scaled.written[step][tag] == pytest.approx(values[tag], **CLOSE)


def test_a_step_that_a_scaler_does_not_call_is_not_counted() -> None:
    model, board = net(), Board()
    optimizer = steprule.AdamW(model.parameters())
    log = log_to(board, optimizer, every=1)
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1.0, math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((model(torch.ones(1, 3)) ** 2).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert ([*board.written], log.step) == ([1, 2], 2)


# ---- parameters of other kinds -------------------------------------------------------------------
def test_halves_complex_sparse_frozen_and_empty_ones_count() -> None:
    params = [
        torch.full((3,), 300.0, dtype=torch.float16),  # whose square is infinite in float16
        torch.full((2,), 1 + 1j),
        torch.ones(4, 2, dtype=torch.float64),
        torch.ones(0),
    ]
    for param in params:
        param.requires_grad_()
    board, optimizer = Board(), steprule.SGD(params, lr=1.0)
    log_to(board, optimizer, every=1, prefix="sgd")
    params[0].grad = torch.full((3,), 300.0, dtype=torch.float16)
    params[2].grad = torch.sparse_coo_tensor(
        [[1, 1]], [[1.0, 1.0]] * 2, (4, 2), check_invariants=True
    ).double()
    optimizer.step()
    (values,) = board.written.values()
    assert values["sgd/grad_norm"] == pytest.approx(math.sqrt(3 * 300**2 + 8), **CLOSE)
    assert values["sgd/weight_norm"] == pytest.approx(math.sqrt(4 + 6 + 2), **CLOSE)


@pytest.mark.parametrize("library", [steprule, torch.optim], ids=["steprule", "torch"])
def test_gradients_whose_squares_overflow_have_a_norm(library: Any) -> None:
    weight = torch.ones(4, requires_grad=True)
    board, optimizer = Board(), library.SGD([weight], lr=1e-30)
    log_to(board, optimizer, every=1)
    weight.grad = torch.full((4,), 1e25)
    optimizer.step()
    assert board.written[1]["optimizer/grad_norm"] == pytest.approx(2e25, **CLOSE)


@pytest.mark.parametrize("library", [steprule, torch.optim], ids=["steprule", "torch"])
def test_a_closure_may_add_a_group(library: Any) -> None:
    model, board = net(), Board()
    optimizer = library.AdamW(model[2].parameters())
    log_to(board, optimizer, every=1, prefix="")

    def closure() -> Tensor:
        if len(optimizer.param_groups) == 1:
            optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
        return backward(model)

    optimizer.step(closure)
    assert board.written[1]["lr/1"] == 0.5
    assert {"update_ratio/0", "weight_norm/1", "grad_norm/1"} <= set(board.written[1])


def test_where_weights_are_0_there_is_no_ratio() -> None:
    weight = torch.zeros(2, requires_grad=True)
    board, optimizer = Board(), torch.optim.SGD([weight], lr=1.0)
    log_to(board, optimizer, every=1)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert set(board.written[1]) == {f"optimizer/{x}" for x in ("lr", "weight_norm", "grad_norm")}


def test_of_steps_in_the_backward_pass_what_can_be_known_is_written() -> None:
    model, board = net(), Board()
    optimizer = steprule.step_in_backward(model, lambda p: steprule.SGD(p, lr=0.1))
    log_to(board, optimizer, every=1)
    backward(model)
    optimizer.step()
    assert set(board.written[1]) == {"optimizer/lr", "optimizer/weight_norm"}


def test_groups_without_names_of_their_own_are_numbered() -> None:
    model, board = net(), Board()
    groups = [{k: v for k, v in g.items() if k != "name"} for g in groups_of(model)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    log_to(board, optimizer, every=1)
    take(model, optimizer, 1)
    assert {tag.rpartition("/")[2] for tag in board.written[1]} == {"0", "1", "grad_norm"}


def test_of_sharded_parameters_every_rank_writes_the_whole() -> None:
    for mine, whole in ranks(2).run(step_logs.logged):
        assert mine == pytest.approx(whole, **CLOSE)
