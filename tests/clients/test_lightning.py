"""Lightning's Trainer drives steprule's optimizers and schedulers as it drives torch's."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import SHARED, assert_close, assert_same, loader, network, options_of, run_example
from torch import Tensor, nn

import steprule
from steprule.schedules import cosine, linear

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the packages that it imports say of each other
    lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.precision import MixedPrecision

pytestmark = [
    # Lightning's own: its tree of loaders, its advice on workers and on few batches.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # The resumed fits save nothing themselves.
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.:UserWarning"),
]

BATCHES = 4
TORCH_SCHEDULERS, OURS = torch.optim.lr_scheduler, steprule.lr_scheduler


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """A regression whose losses are kept, and whose optimizer is what ``make(module)`` returns."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self.net, self.make = network(), make
        self.losses: list[float] = []

    def loss(self, batch: Any) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def training_step(self, batch: Any, _: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return self.make(self)


class Resumable:
    """A loader that says how far it is: a run that stopped within an epoch goes on there."""

    def __init__(self) -> None:
        self.batches, self.given = list(loader()), 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for i in range(self.given % BATCHES, BATCHES):
            self.given = i + 1
            yield self.batches[i]
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


class InMemory(Logger):
    """Keeps what the Trainer and its callbacks log."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.append({**metrics, "at": step})  # type: ignore[dict-item]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def trainer(epochs: int = 3, **options: Any) -> Any:
    quiet = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**quiet, **options},
    )


def fitted(
    make: Callable[[Any], Any], epochs: int = 3, module: Any = Module, **options: Any
) -> Any:
    fit = module(make)
    trainer(epochs, **options).fit(fit, loader())
    return fit


def outcome(module: Any) -> Any:
    return module.losses, list(module.net.parameters())


def beside(make: Callable[[Any, Any], Any], tolerance: Any = None, **options: Any) -> Any:
    """Fit by ``make(optimizers, schedulers)`` with torch's and with steprule's; they agree."""
    theirs = fitted(make(torch.optim, TORCH_SCHEDULERS), **options)
    ours = fitted(make(steprule, OURS), **options)
    assert_close(outcome(ours), outcome(theirs), **(tolerance or {}))
    return ours


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


# ---- checkpoints -------------------------------------------------------------------------------
def matrices(module: Any) -> list[Any]:
    return [p for p in module.parameters() if p.ndim == 2]


def vectors(module: Any) -> list[Any]:
    return [p for p in module.parameters() if p.ndim != 2]


def adamw_with_one_cycle(module: Any) -> Any:
    optimizer = steprule.AdamW(module.parameters(), lr=0.01)
    scheduler = OURS.OneCycleLR(optimizer, 0.05, 16)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


RESUMED: dict[str, Callable[[Any], Any]] = {
    "AdamW, OneCycleLR": adamw_with_one_cycle,
    "a schedule": lambda m: steprule.NAdam(
        m.named_parameters(), lr=linear(0.05, 0, steps=16), weight_decay=linear(0.1, 0, steps=8)
    ),
    "int8, an average": lambda m: steprule.Adam(
        m.parameters(), lr=0.01, state_format="int8", ema_decay=0.9
    ),
    "Lookahead": lambda m: steprule.Lookahead(steprule.AdamW(m.parameters(), lr=0.01), k=3),
    "SAM": lambda m: steprule.SAM(steprule.SGD(m.parameters(), lr=0.05, momentum=0.9)),
    "Muon and AdamW": lambda m: steprule.combine(
        steprule.Muon(matrices(m), lr=0.02), steprule.AdamW(vectors(m), lr=0.01)
    ),
    "ScheduleFree": lambda m: steprule.ScheduleFreeAdamW(m.parameters(), lr=0.05, warmup_steps=3),
    "LBFGS": lambda m: steprule.LBFGS(m.parameters(), max_iter=3, line_search_fn="more_thuente"),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_fit_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Saved within an epoch by the Trainer's own callback, loaded by ``ckpt_path``."""
    whole = Module(RESUMED[name])
    first = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=6, filename="{step}")
    trainer(4, enable_checkpointing=True, callbacks=[first]).fit(whole, Resumable())
    saved = tmp_path / "step=6.ckpt"
    assert saved.exists()

    again = Module(RESUMED[name])
    again.net.load_state_dict(network(seed=5).state_dict())  # which the checkpoint replaces
    trainer(4).fit(again, Resumable(), ckpt_path=saved)
    assert_same(again.losses, whole.losses[-len(again.losses) :])
    assert 0 < len(again.losses) < len(whole.losses)
    assert_same(list(again.net.parameters()), list(whole.net.parameters()))
    states = [fit.trainer.optimizers[0].state_dict() for fit in (again, whole)]
    assert_same(*states)


def test_a_plateau_goes_on_between_epochs(tmp_path: Path) -> None:
    """Within an epoch Lightning itself leaves out the plateau's step at its end."""

    def make(module: Any) -> Any:
        optimizer = steprule.SGD(module.parameters(), lr=0.3, momentum=0.5)
        plateau = OURS.ReduceLROnPlateau(optimizer, patience=0, threshold=0.3)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "loss"}

    whole = fitted(make, epochs=5)
    begun = trainer(2)
    begun.fit(Module(make), loader())
    begun.save_checkpoint(tmp_path / "begun.ckpt")
    again = Module(make)
    trainer(5).fit(again, loader(), ckpt_path=tmp_path / "begun.ckpt")
    assert_same(again.losses, whole.losses[2 * BATCHES :])
    plateaus = [
        fit.trainer.lr_scheduler_configs[0].scheduler.state_dict() for fit in (again, whole)
    ]
    assert_same(*plateaus)
    assert plateaus[0]["_last_lr"] < [0.3]


def test_a_wrappers_state_is_loaded_through_lightnings_optimizer() -> None:
    module = fitted(RESUMED["Lookahead"])
    seen = module.optimizers()
    saved = seen.state_dict()
    assert saved["lookahead"]["steps"] == 3 * BATCHES
    seen.load_state_dict(saved)
    assert_same(module.trainer.optimizers[0].state_dict(), saved)


def test_a_checkpoint_of_torchs_goes_on_with_ours_and_back(tmp_path: Path) -> None:
    def make(optim: Any, schedulers: Any) -> Any:
        def configure(module: Any) -> Any:
            optimizer = optim.AdamW(module.parameters(), lr=0.01)
            return [optimizer], [schedulers.CosineAnnealingLR(optimizer, 4)]

        return configure

    sides = [make(torch.optim, TORCH_SCHEDULERS), make(steprule, OURS)]
    results = []
    for first, second in (sides, sides[::-1]):
        start = Module(first)
        begun = trainer(2)
        begun.fit(start, loader())
        begun.save_checkpoint(tmp_path / "begun.ckpt")
        end = Module(second)
        trainer(4).fit(end, loader(), ckpt_path=tmp_path / "begun.ckpt")
        results.append((start.losses + end.losses, list(end.net.parameters())))
    assert len(results[0][0]) == 4 * BATCHES
    assert_close(*results)
    assert_close(results[0], outcome(fitted(sides[0], epochs=4)))


# ---- manual optimization -----------------------------------------------------------------------
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


class SamByHand(Module):
    """SAM by hand: with a closure, or in two steps."""

    in_two_steps = False

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:  # type: ignore[override]
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            self.losses.append(loss.item())
            return loss

        if not self.in_two_steps:
            optimizer.step(closure)
            return
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()


class SamInTwoSteps(SamByHand):
    in_two_steps = True


# ---- optimizers that torch has not -------------------------------------------------------------
def plain_loop(make: Callable[[Any], Any], epochs: int = 3) -> Any:
    """The same fit without Lightning."""
    module = Module(make)
    optimizer = make(module)
    for batch in list(loader()) * epochs:

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = module.loss(batch)
            loss.backward()
            module.losses.append(loss.item())
            return loss

        optimizer.step(closure)
    return outcome(module)


@pytest.mark.parametrize("name", [name for name in RESUMED if "LR" not in name])
def test_a_fit_is_the_plain_loop(name: str) -> None:
    assert_same(outcome(fitted(RESUMED[name])), plain_loop(RESUMED[name]))


@pytest.mark.parametrize("module", [SamByHand, SamInTwoSteps])
def test_sam_by_hand(module: Any) -> None:
    by_hand = fitted(RESUMED["SAM"], module=module)
    assert_same(outcome(by_hand), plain_loop(RESUMED["SAM"]))
    assert by_hand.trainer.global_step == 3 * BATCHES


class ScheduleFree(Module):
    """Evaluates and saves the average: the optimizer's mode goes with the model's."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__(make)
        self.evaluated: list[float] = []

    def put(self, *, in_train_mode: bool) -> None:
        for optimizer in self.trainer.optimizers:  # none in trainer.validate()
            optimizer.train() if in_train_mode else optimizer.eval()

    def on_train_epoch_start(self) -> None:
        self.put(in_train_mode=True)

    def on_validation_model_eval(self) -> None:
        super().on_validation_model_eval()
        self.put(in_train_mode=False)

    def on_validation_model_train(self) -> None:
        super().on_validation_model_train()
        self.put(in_train_mode=True)

    def on_train_end(self) -> None:
        self.put(in_train_mode=False)

    def validation_step(self, batch: Any, _: int) -> None:
        self.evaluated.append(self.loss(batch).item())


def test_schedule_free_goes_with_the_models_mode(tmp_path: Path) -> None:
    """The checkpoint is written in eval mode, by Lightning at the end of a validation."""
    make = RESUMED["ScheduleFree"]
    whole = ScheduleFree(make)
    saving = ModelCheckpoint(
        tmp_path, save_top_k=-1, save_on_train_epoch_end=False, filename="{epoch}"
    )
    options: Any = {"check_val_every_n_epoch": 1, "num_sanity_val_steps": 1}
    saver = trainer(4, enable_checkpointing=True, callbacks=[saving], **options)
    saver.fit(whole, loader(), loader())

    net = network()
    optimizer = steprule.ScheduleFreeAdamW(net.parameters(), lr=0.05, warmup_steps=3)
    evaluated = []
    for _ in range(4):
        optimizer.train()
        for inputs, targets in loader():
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs), targets).backward()
            optimizer.step()
        optimizer.eval()
        evaluated += [nn.functional.mse_loss(net(x), y).item() for x, y in loader()]
    assert_same(whole.evaluated[1:], evaluated)
    assert_same(list(whole.net.parameters()), list(net.parameters()))

    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert not saved["optimizer_states"][0]["param_groups"][0]["train_mode"]
    again = ScheduleFree(make)
    trainer(4, **options).fit(again, loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(again.evaluated[-2 * BATCHES :], evaluated[-2 * BATCHES :])
    assert_same(list(again.net.parameters()), list(net.parameters()))


# ---- precision, averages -----------------------------------------------------------------------
def in_16_bits() -> dict[str, Any]:
    """float16 with a scaler on the CPU, whose first scale is too large for four steps."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=5)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}


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


def test_sam_by_hand_with_a_scaler() -> None:
    """Both passes scaled; the second step is the scaler's."""
    fit = fitted(RESUMED["SAM"], module=SamInTwoSteps, **in_16_bits())

    module = Module(RESUMED["SAM"])
    optimizer = RESUMED["SAM"](module)
    scaler = in_16_bits()["plugins"][0].scaler
    for batch in list(loader()) * 3:
        for step in (optimizer.first_step, lambda: scaler.step(optimizer)):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, cache_enabled=False):
                loss = module.loss(batch)
            scaler.scale(loss).backward()
            module.losses.append(loss.item())
            step()
        scaler.update()
    assert_same(outcome(fit), outcome(module))
    assert not torch.equal(fit.net[0].weight, network()[0].weight)


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


# ---- Fabric, and the search for an lr ----------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in RESUMED if "LR" not in name])
def test_fabric(name: str, tmp_path: Path) -> None:
    """The plain loop, saved by Fabric after an epoch and loaded into what is made anew."""

    def build() -> Any:
        fabric = lightning.Fabric(accelerator="cpu", devices=1)
        net = network()
        return fabric, *fabric.setup(net, RESUMED[name](net))

    def epochs(fabric: Any, net: Any, optimizer: Any, count: int) -> list[float]:
        losses = []
        for batch in list(loader()) * count:

            def closure(batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(batch[0]), batch[1])
                fabric.backward(loss)
                losses.append(loss.item())
                return loss

            optimizer.step(closure)
        return losses

    whole, again = build(), build()
    losses = epochs(*whole, 1)
    path = tmp_path / "fabric.ckpt"
    whole[0].save(path, {"net": whole[1], "optimizer": whole[2]})
    again[0].load(path, {"net": again[1], "optimizer": again[2]})
    rest = [epochs(*side, 2) for side in (whole, again)]
    assert_same(rest[1], rest[0])
    assert_same(again[2].state_dict(), whole[2].state_dict())
    parameters = list(again[1].parameters())
    assert_same((losses + rest[0], parameters), plain_loop(RESUMED[name]))


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
