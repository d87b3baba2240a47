"""Lightning's Trainer drives steprule's optimizers and schedulers as it drives torch's."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import SHARED, assert_close, assert_same, loader, network, options_of, run_example
from lightning_runs import (
    BATCHES,
    OURS,
    TORCH_SCHEDULERS,
    WARNINGS,
    InMemory,
    LearningRateMonitor,
    Module,
    StochasticWeightAveraging,
    beside,
    fitted,
    in_16_bits,
    outcome,
    trainer,
)
from torch import nn

import steprule
from steprule.schedules import cosine

pytestmark = WARNINGS


# ---- optimizers --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHARED)
def test_a_fit_is_that_with_torchs_class(name: str) -> None:
    def make(optim: Any, _: Any) -> Any:
        return lambda module: getattr(optim, name)(module.parameters(), **options_of(name))

    ours = beside(make)
    assert len(ours.losses) == 3 * BATCHES


def test_lbfgs_gets_its_closure() -> None:
    """In float64: what rounding does to a line search grows too fast to be compared in float32."""

    def make(optim: Any, _: Any) -> Any:
        search = {"line_search_fn": "strong_wolfe", "max_iter": 4}
        return lambda module: optim.LBFGS(module.parameters(), **search)

    ours = beside(make, epochs=2, precision="64-true", tolerance={"rtol": 1e-8, "atol": 1e-9})
    assert len(ours.losses) > 2 * BATCHES  # several evaluations a step
    assert ours.net[0].weight.dtype is torch.float64


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainer_clips_gradients(algorithm: str) -> None:
    def make(optim: Any, _: Any) -> Any:
        return lambda module: optim.Adam(module.parameters(), lr=0.01)

    clip = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": algorithm}
    ours = beside(make, **clip)
    assert ours.losses != fitted(make(steprule, OURS)).losses


def test_clipping_within_the_step_is_the_trainers() -> None:
    def make(**options: Any) -> Any:
        return lambda module: steprule.AdamW(module.parameters(), lr=0.01, **options)

    within = fitted(make(clip_grad_norm=0.02))
    assert_close(outcome(within), outcome(fitted(make(), gradient_clip_val=0.02)))


def test_gradients_are_accumulated() -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
            scheduler = schedulers.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        return configure

    ours = beside(make, accumulate_grad_batches=2)
    lr = ours.trainer.optimizers[0].param_groups[0]["lr"]
    assert lr == pytest.approx(0.05 * 0.9 ** (3 * BATCHES // 2))


# ---- what configure_optimizers returns, and when schedulers step -------------------------------
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "one": lambda optimizer, _: optimizer,
    "list": lambda optimizer, _: [optimizer],
    "two lists": lambda optimizer, scheduler: ([optimizer], [scheduler]),
    "dict": lambda optimizer, scheduler: {"optimizer": optimizer, "lr_scheduler": scheduler},
    "by epoch": lambda optimizer, scheduler: {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "frequency": 2},
    },
    "by step": lambda optimizer, scheduler: (
        [optimizer],
        [{"scheduler": scheduler, "interval": "step", "frequency": 3, "name": "mine"}],
    ),
    "list of dicts": lambda optimizer, scheduler: [
        {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_configuration(form: str) -> None:
    logs = []

    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            groups = [
                {"params": [p for p in module.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in module.parameters() if p.ndim < 2], "lr": 0.02},
            ]
            optimizer = optim.AdamW(groups, lr=0.01)
            return FORMS[form](optimizer, schedulers.StepLR(optimizer, 1, 0.5))

        return configure

    for optim, schedulers in ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS)):
        logger = InMemory()
        callbacks = [] if form in ("one", "list") else [LearningRateMonitor(log_momentum=True)]
        module = fitted(make(optim, schedulers), logger=logger, callbacks=callbacks)
        logs.append((outcome(module), logger.seen))
    assert_close(*logs)
    if callbacks:
        assert any(key.startswith(("lr-", "mine")) for line in logs[1][1] for key in line)


@pytest.mark.parametrize("whose", ["torch's", "ours"])
def test_a_plateau_gets_the_metric_it_monitors(whose: str) -> None:
    """ReduceLROnPlateau of either library, over steprule's optimizer."""

    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.SGD(module.parameters(), lr=0.3)
            plateau = schedulers.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3)
            return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "loss"}

        return configure

    theirs = fitted(make(torch.optim, TORCH_SCHEDULERS), epochs=5)
    ours = fitted(make(steprule, OURS if whose == "ours" else TORCH_SCHEDULERS), epochs=5)
    assert_close(outcome(ours), outcome(theirs))
    used = [fit.trainer.optimizers[0].param_groups[0]["lr"] for fit in (ours, theirs)]
    assert used[0] == used[1] < 0.3


SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "OneCycleLR": lambda schedulers, optimizer: schedulers.OneCycleLR(optimizer, 0.1, 12),
    "SequentialLR": lambda schedulers, optimizer: schedulers.SequentialLR(
        optimizer,
        [
            schedulers.LinearLR(optimizer, 0.1, total_iters=3),
            schedulers.CosineAnnealingLR(optimizer, 9),
        ],
        [3],
    ),
    "LambdaLR": lambda schedulers, optimizer: schedulers.LambdaLR(optimizer, lambda k: 0.8**k),
    "CyclicLR": lambda schedulers, optimizer: schedulers.CyclicLR(optimizer, 0.01, 0.1, 3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers_by_the_step(name: str) -> None:
    logs = []
    for optim, schedulers in ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS)):

        def configure(module: Any, optim: Any = optim, schedulers: Any = schedulers) -> Any:
            optimizer = optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
            scheduler = SCHEDULES[name](schedulers, optimizer)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        logger = InMemory()
        monitor = LearningRateMonitor(logging_interval="step", log_momentum=True)
        logs.append((outcome(fitted(configure, logger=logger, callbacks=[monitor])), logger.seen))
    assert_close(*logs)
    assert len({line["lr-SGD"] for line in logs[1][1] if "lr-SGD" in line}) > 3


def test_a_schedule_in_place_of_lr_needs_no_scheduler() -> None:
    """And LearningRateMonitor, which asks schedulers, sees it where one is made of it."""
    schedule = cosine(0.05, 0, steps=9).warmup(3)
    logger = InMemory()

    def alone(module: Any) -> Any:
        return steprule.SGD(module.parameters(), lr=schedule, momentum=0.9)

    def with_scheduler(module: Any) -> Any:
        optimizer = steprule.SGD(module.parameters(), lr=0.05, momentum=0.9)
        scheduler = OURS.from_schedule(optimizer, schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    monitor = LearningRateMonitor(logging_interval="step")
    by_hand = fitted(with_scheduler, logger=logger, callbacks=[monitor])
    assert_same(outcome(fitted(alone)), outcome(by_hand))
    logged = [line["lr-SGD"] for line in logger.seen if "lr-SGD" in line]
    assert logged == schedule(range(12)).tolist()


# ---- two optimizers by hand
class TwoNets(Module):
    """Two optimizers in turn, as for GANs; each net chases what the other gives."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.automatic_optimization = False
        self.critic = network(seed=1)

    def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
        inputs, targets = batch
        first, second = self.optimizers()
        for optimizer, chased, chasing in (
            (first, targets, self.net),
            (second, self.net(inputs).detach() ** 2, self.critic),
        ):
            self.toggle_optimizer(optimizer)
            loss = nn.functional.mse_loss(chasing(inputs), chased)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.losses.append(loss.item())
        for scheduler in self.lr_schedulers():
            scheduler.step()


def test_two_optimizers_by_hand(tmp_path: Path) -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            first = optim.Adam(module.net.parameters(), lr=0.01, betas=(0.5, 0.999))
            second = optim.RMSprop(module.critic.parameters(), lr=0.01)
            return [first, second], [schedulers.ExponentialLR(o, 0.9) for o in (first, second)]

        return configure

    ours = beside(make, module=TwoNets)
    assert len(ours.trainer.optimizers) == 2

    begun = trainer(1)
    begun.fit(TwoNets(make(steprule, OURS)), loader())
    begun.save_checkpoint(tmp_path / "begun.ckpt")
    again = TwoNets(make(steprule, OURS))
    trainer(3).fit(again, loader(), ckpt_path=tmp_path / "begun.ckpt")
    assert_same(list(again.parameters()), list(ours.parameters()))


class ByClosure(Module):
    """Steps by hand, the loss being what the step returns."""

    automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()

        def closure() -> Any:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

        with torch.no_grad():  # as where weights are bounded in place behind the step
            self.losses.append(optimizer.step(closure).item())


def test_a_closure_by_hand_gives_its_loss() -> None:
    def make(optim: Any, _: Any) -> Any:
        return lambda module: optim.Adam(module.parameters(), lr=0.01)

    ours = beside(make, module=ByClosure)
    assert len(ours.losses) == 3 * BATCHES


@pytest.mark.parametrize("clip", [{}, {"gradient_clip_val": 0.05}], ids=["", "clipped"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(precision: str, clip: dict[str, float]) -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.AdamW(module.parameters(), lr=0.01)
            scheduler = schedulers.StepLR(optimizer, 5, 0.5)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

        return configure

    sides = []
    for optim, schedulers in ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS)):
        kind = in_16_bits() if precision == "16-mixed" else {"precision": precision}
        # The scaler skips the first step: torch's scheduler takes that for the wrong order of
        # calls, steprule's does not.
        expected = (
            pytest.warns(UserWarning, match="Detected call of `lr_scheduler.step")
            if precision == "16-mixed" and optim is torch.optim
            else contextlib.nullcontext()
        )
        with expected:
            module = fitted(make(optim, schedulers), **kind, **clip)
        steps = {float(entry["step"]) for entry in module.trainer.optimizers[0].state.values()}
        sides.append([*outcome(module), sorted(steps)])
    # The weights are float32; one rounding of an activation to 8 bits is 2**-9 of a gradient.
    assert_close(*sides, rtol=2e-2, atol=2e-3)
    assert sides[1][2] == ([12.0] if precision == "bf16-mixed" else [8.0])


def test_a_schedule_may_wait_for_steps_that_a_scaler_skips() -> None:
    def make(module: Any) -> Any:
        optimizer = steprule.AdamW(module.parameters(), lr=0.01)
        scheduler = OURS.StepLR(optimizer, 5, 0.5, hold_on_skip=True)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    trained = fitted(make, **in_16_bits()).trainer
    taken = {int(entry["step"]) for entry in trained.optimizers[0].state.values()}
    assert taken == {trained.lr_scheduler_configs[0].scheduler.last_epoch} == {8}


def test_weights_are_averaged_by_the_callback() -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
            return [optimizer], [schedulers.StepLR(optimizer, 1, 0.9)]

        return configure

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Swapping scheduler")
        sides = []
        for optim, schedulers in ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS)):
            callback = StochasticWeightAveraging(0.02, swa_epoch_start=2, annealing_epochs=2)
            module = fitted(make(optim, schedulers), epochs=6, callbacks=[callback])
            lr = module.trainer.optimizers[0].param_groups[0]["lr"]
            sides.append((outcome(module), lr))
    assert_close(*sides)
    assert sides[1][1] == pytest.approx(0.02)


def test_lightnings_lr_finder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.tuner import Tuner

    class WithLr(Module):
        lr = 0.01

    monkeypatch.chdir(tmp_path)  # it keeps a checkpoint in the folder meanwhile
    found = []
    for optim in (torch.optim, steprule):
        module = WithLr(lambda m, optim=optim: optim.SGD(m.parameters(), lr=m.lr, momentum=0.9))
        before = [param.detach().clone() for param in module.net.parameters()]
        options: Any = {"min_lr": 1e-4, "max_lr": 1.0, "num_training": 20, "update_attr": True}
        finder = Tuner(trainer(20, max_steps=30)).lr_find(module, loader(), **options)
        assert_same(list(module.net.parameters()), before)
        found.append((finder.results["lr"], finder.results["loss"], module.lr))
    assert_close(*found)


def test_the_example_in_the_docs() -> None:
    run_example("Lightning")
