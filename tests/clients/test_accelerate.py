"""Accelerate prepares steprule's optimizers and schedulers as it prepares torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import SHARED, assert_close, assert_same, loader, network, options_of, run_example
from torch import Tensor, nn

import steprule
from steprule.schedules import linear

accelerate = pytest.importorskip("accelerate")

from accelerate.state import AcceleratorState, GradientState  # noqa: E402

TORCH_SCHEDULERS, OURS = torch.optim.lr_scheduler, steprule.lr_scheduler
EPOCHS = 3


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Accelerate keeps its precision and process in singletons."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Run:
    """A loop over what an Accelerator prepared; ``make(parameters)`` gives optimizer, scheduler."""

    def __init__(
        self,
        make: Callable[[Any], Any],
        clip: float | None = None,
        scaler: Any = None,
        factor: float = 1.0,
        **options: Any,
    ) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(cpu=True, **options)
        if scaler is not None:
            self.accelerator.scaler, self.accelerator.native_amp = scaler, True
        net = network()
        made = make(net)
        optimizer, scheduler = made if isinstance(made, tuple) else (made, None)
        self.net, self.optimizer, self.batches = self.accelerator.prepare(net, optimizer, loader())
        self.scheduler = None if scheduler is None else self.accelerator.prepare(scheduler)
        self.clip, self.factor = clip, factor
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.skipped: list[bool] = []

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return self.factor * nn.functional.mse_loss(self.net(inputs), targets)

    def step(self, batch: Any) -> None:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.accelerator.backward(loss)
        if self.clip is not None and self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        self.skipped.append(self.accelerator.optimizer_step_was_skipped)
        if self.scheduler is not None:
            self.scheduler.step()
        self.optimizer.zero_grad()
        self.lrs.append(self.optimizer.param_groups[0]["lr"])

    def epochs(self, count: int = EPOCHS) -> Any:
        for _ in range(count):
            for batch in self.batches:
                with self.accelerator.accumulate(self.net):
                    self.step(batch)
        return self

    @property
    def outcome(self) -> Any:
        return self.losses, self.lrs, list(self.net.parameters())


def beside(make: Callable[[Any, Any], Any], **options: Any) -> Any:
    """Run with what ``make(optimizers, schedulers)`` makes of torch's and of ours; they agree."""
    theirs = Run(make(torch.optim, TORCH_SCHEDULERS), **options).epochs()
    ours = Run(make(steprule, OURS), **options).epochs()
    assert_close(ours.outcome, theirs.outcome)
    assert ours.skipped == theirs.skipped
    return ours


def adamw_by_steps(optim: Any, schedulers: Any) -> Any:
    def make(net: Any) -> Any:
        optimizer = optim.AdamW(net.parameters(), lr=0.02)
        return optimizer, schedulers.StepLR(optimizer, 2, 0.7)

    return make


@pytest.mark.parametrize("name", SHARED)
def test_a_loop_is_that_with_torchs_class(name: str) -> None:
    def make(optim: Any, _: Any) -> Any:
        return lambda net: getattr(optim, name)(net.parameters(), **options_of(name))

    beside(make)


@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_scheduler_accumulation_and_clipping(accumulated: int, clip: float | None) -> None:
    ours = beside(adamw_by_steps, gradient_accumulation_steps=accumulated, clip=clip)
    # A prepared scheduler waits for the optimizer's steps.
    assert ours.scheduler.scheduler.last_epoch == 4 * EPOCHS // accumulated


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "SequentialLR"])
def test_schedulers(name: str) -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def made(net: Any) -> Any:
            optimizer = optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
            if name == "OneCycleLR":
                return optimizer, schedulers.OneCycleLR(optimizer, 0.1, 4 * EPOCHS)
            cosine = schedulers.CosineAnnealingLR(optimizer, 8)
            if name == "CosineAnnealingLR":
                return optimizer, cosine
            warmup = schedulers.LinearLR(optimizer, 0.1, total_iters=3)
            return optimizer, schedulers.SequentialLR(optimizer, [warmup, cosine], [3])

        return made

    assert len(set(beside(make).lrs)) > 4


def test_bfloat16() -> None:
    # Weights stay in float32; gradients of both sides are the same bits while weights are, and
    # an activation that rounds to the other side changes one by 2**-8.
    runs = [
        Run(adamw_by_steps(*kinds), mixed_precision="bf16").epochs().outcome
        for kinds in ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS))
    ]
    assert_close(*runs, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("clip", [None, 0.05], ids=["", "clipped"])
def test_steps_that_a_scaler_skips(clip: float | None) -> None:
    """Accelerate makes no scaler on the CPU; it is given one, whose scale is too large at first."""

    def run(*kinds: Any) -> Any:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=100)
        return Run(adamw_by_steps(*kinds), scaler=scaler, factor=64.0, clip=clip).epochs()

    theirs, ours = run(torch.optim, TORCH_SCHEDULERS), run(steprule, OURS)
    assert_close(ours.outcome, theirs.outcome)
    assert ours.skipped == theirs.skipped
    assert 0 < sum(ours.skipped) < len(ours.skipped)
    taken = len(ours.skipped) - sum(ours.skipped)
    state = ours.optimizer.state_dict()["state"]
    assert {float(entry["step"]) for entry in state.values()} == {taken}
    assert ours.scheduler.scheduler.last_epoch == taken


def matrices(net: Any) -> list[Any]:
    return [p for p in net.parameters() if p.ndim == 2]


def vectors(net: Any) -> list[Any]:
    return [p for p in net.parameters() if p.ndim != 2]


RESUMED: dict[str, Callable[[Any], Any]] = {
    "AdamW, StepLR": adamw_by_steps(steprule, OURS),
    "a schedule": lambda net: steprule.SGD(
        net.named_parameters(), lr=linear(0.1, 0, steps=20), momentum=0.9
    ),
    "int8, an average": lambda net: steprule.Adam(
        net.parameters(), lr=0.01, state_format="int8", ema_decay=0.9
    ),
    "Lookahead": lambda net: steprule.Lookahead(steprule.AdamW(net.parameters(), lr=0.01), k=3),
    "Muon and AdamW": lambda net: steprule.combine(
        steprule.Muon(matrices(net), lr=0.02), steprule.AdamW(vectors(net), lr=0.01)
    ),
    "ScheduleFree": lambda net: steprule.ScheduleFreeAdamW(net.parameters(), lr=0.05),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_state_that_is_saved_and_loaded_goes_on_as_before(name: str, tmp_path: Path) -> None:
    whole = Run(RESUMED[name]).epochs(1)
    whole.accelerator.save_state(str(tmp_path))
    whole.epochs(2)

    again = Run(RESUMED[name]).epochs(1)
    for param in again.net.parameters():
        param.data.zero_()
    again.accelerator.load_state(str(tmp_path))
    again.epochs(2)
    assert_same(again.losses[4:], whole.losses[4:])
    assert_same(again.outcome[1:], whole.outcome[1:])
    assert_same(again.optimizer.state_dict(), whole.optimizer.state_dict())


def test_a_state_of_torchs_goes_on_with_ours_and_back(tmp_path: Path) -> None:
    sides = [(torch.optim, TORCH_SCHEDULERS), (steprule, OURS)]
    results = []
    for i, (first, second) in enumerate((sides, sides[::-1])):
        folder = str(tmp_path / str(i))
        Run(adamw_by_steps(*first)).epochs(1).accelerator.save_state(folder)
        again = Run(adamw_by_steps(*second))
        again.accelerator.load_state(folder)
        results.append(again.epochs(2).outcome)
    assert_close(*results)
    assert_close(results[0][2], Run(adamw_by_steps(*sides[0])).epochs().outcome[2])


@pytest.mark.parametrize("name", [name for name in RESUMED if "LR" not in name])
def test_a_prepared_optimizer_is_the_plain_one(name: str) -> None:
    net = network()
    optimizer = RESUMED[name](net)
    losses = []
    for inputs, targets in list(loader()) * EPOCHS:
        loss = nn.functional.mse_loss(net(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    run = Run(RESUMED[name]).epochs()
    assert_same((run.losses, list(run.net.parameters())), (losses, list(net.parameters())))


def test_sam_takes_its_closure() -> None:
    run = Run(lambda net: steprule.SAM(steprule.SGD(net.parameters(), lr=0.05)))
    net = network()
    plain = steprule.SAM(steprule.SGD(net.parameters(), lr=0.05))
    for batch in list(loader()) * 2:

        def closure(batch: Any = batch) -> Tensor:
            run.optimizer.zero_grad()
            loss = run.loss(batch)
            run.accelerator.backward(loss)
            return loss

        def plainly(batch: Any = batch) -> Tensor:
            plain.zero_grad()
            loss = nn.functional.mse_loss(net(batch[0]), batch[1])
            loss.backward()
            return loss

        run.optimizer.step(closure)
        plain.step(plainly)
    assert_same(list(run.net.parameters()), list(net.parameters()))


def test_train_and_eval_reach_a_schedule_free_optimizer() -> None:
    run = Run(RESUMED["ScheduleFree"]).epochs()
    at_y = [param.detach().clone() for param in run.net.parameters()]
    run.optimizer.eval()
    assert not torch.equal(run.net[0].weight, at_y[0])
    with pytest.raises(RuntimeError, match="eval mode"):
        run.epochs(1)
    run.optimizer.train()
    assert_same(list(run.net.parameters()), at_y)
    run.optimizer.zero_grad()
    run.epochs(1)


def test_the_example_in_the_docs() -> None:
    run_example("Accelerate")
