"""Ignite's trainers, parameter schedulers and checkpoints with steprule's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from client_runs import SHARED, assert_close, assert_same, loader, network, options_of, run_example
from torch import nn

import steprule

pytest.importorskip("ignite")

from ignite.engine import Engine, Events, create_supervised_trainer
from ignite.handlers import (
    Checkpoint,
    ConcatScheduler,
    CosineAnnealingScheduler,
    DiskSaver,
    FastaiLRFinder,
    LinearCyclicalScheduler,
    LRScheduler,
    ParamGroupScheduler,
    PiecewiseLinear,
    create_lr_scheduler_with_warmup,
)
from ignite.handlers.param_scheduler import ReduceLROnPlateauScheduler

OURS, TORCH_SCHEDULERS = steprule.lr_scheduler, torch.optim.lr_scheduler
KINDS = ((torch.optim, TORCH_SCHEDULERS), (steprule, OURS))


class Run:
    """A trainer of Ignite's, and what it saw: losses, and the groups' numbers at each step."""

    def __init__(self, make: Callable[[Any], Any], schedule: Any = None, **options: Any) -> None:
        self.net = network()
        self.optimizer = make(self.net)
        self.losses: list[float] = []
        self.used: list[Any] = []
        self.trainer = create_supervised_trainer(
            self.net, self.optimizer, nn.functional.mse_loss, **options
        )
        self.schedule = schedule(self.optimizer) if schedule else None
        if self.schedule is not None:
            self.trainer.add_event_handler(Events.ITERATION_STARTED, self.schedule)
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self.look)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def look(self) -> None:
        keys = ("lr", "momentum", "betas", "weight_decay")
        groups = self.optimizer.param_groups
        self.used.append([[group[key] for key in keys if key in group] for group in groups])

    def note(self, engine: Any) -> None:
        self.losses.append(engine.state.output)

    def epochs(self, until: int = 3) -> Any:
        self.trainer.run(loader(), max_epochs=until)
        return self

    @property
    def outcome(self) -> Any:
        return self.losses, self.used, list(self.net.parameters())


def sgd_in_two_groups(optim: Any) -> Callable[[Any], Any]:
    def make(net: Any) -> Any:
        groups = [
            {"params": [p for p in net.parameters() if p.ndim == 2]},
            {"params": [p for p in net.parameters() if p.ndim != 2], "lr": 0.02},
        ]
        return optim.SGD(groups, lr=0.05, momentum=0.9)

    return make


@pytest.mark.parametrize("name", SHARED)
def test_a_run_is_that_with_torchs_class(name: str) -> None:
    def make(optim: Any) -> Callable[[Any], Any]:
        return lambda net: getattr(optim, name)(net.parameters(), **options_of(name))

    assert_close(*(Run(make(optim)).epochs().outcome for optim in (steprule, torch.optim)))


def two_groups(optimizer: Any) -> Any:
    one = LinearCyclicalScheduler(optimizer, "lr", 0.1, 0.01, 6, param_group_index=0)
    other = CosineAnnealingScheduler(optimizer, "lr", 0.05, 0.0, 4, param_group_index=1)
    return ParamGroupScheduler([one, other], names=["matrices", "vectors"])


def one_after_the_other(optimizer: Any) -> Any:
    cosine = CosineAnnealingScheduler(optimizer, "lr", 0.1, 0.01, 6)
    return ConcatScheduler([cosine, PiecewiseLinear(optimizer, "lr", [(0, 0.05), (4, 0.0)])], [5])


PARAMETER_SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda o: LinearCyclicalScheduler(o, "lr", 0.1, 0.01, 6),
    "cosine": lambda o: CosineAnnealingScheduler(o, "lr", 0.1, 0.0, 8),
    "momentum": lambda o: LinearCyclicalScheduler(o, "momentum", 0.95, 0.5, 6),
    "weight decay": lambda o: PiecewiseLinear(o, "weight_decay", [(0, 0.0), (5, 0.1)]),
    "piecewise": lambda o: PiecewiseLinear(o, "lr", [(2, 0.1), (5, 0.02), (9, 0.0)]),
    "by group": two_groups,
    "concatenated": one_after_the_other,
}


@pytest.mark.parametrize("name", PARAMETER_SCHEDULERS)
def test_parameter_schedulers(name: str) -> None:
    runs = [
        Run(sgd_in_two_groups(optim), PARAMETER_SCHEDULERS[name]).epochs().outcome
        for optim in (steprule, torch.optim)
    ]
    assert_close(*runs)
    assert len({str(used) for used in runs[0][1]}) > 3


SCHEDULERS: dict[str, Callable[[Any, Any], Any]] = {
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 9),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.1, 14),
    "LambdaLR": lambda s, o: s.LambdaLR(o, lambda k: 0.8**k),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_ignite_drives(name: str) -> None:
    """It moves ``last_epoch`` and asks ``get_lr()``, and never calls ``step()``."""
    runs = [
        Run(sgd_in_two_groups(o), lambda made, s=s: LRScheduler(SCHEDULERS[name](s, made)))
        for o, s in KINDS
    ]
    assert_close(*(run.epochs().outcome for run in runs))
    assert len({str(used) for used in runs[1].used}) > 3


COMPOSED: dict[str, Callable[[Any, Any], Any]] = {
    "SequentialLR": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.5)], [3]
    ),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o, 0.1, total_iters=3), s.ExponentialLR(o, 0.5)]
    ),
    "ReduceLROnPlateau": lambda s, o: s.ReduceLROnPlateau(o),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_what_ignite_can_not_drive_is_refused_and_does_not_stand_still(name: str) -> None:
    for optim, schedulers in KINDS:
        run = Run(sgd_in_two_groups(optim))
        scheduler = COMPOSED[name](schedulers, run.optimizer)
        before = [group["lr"] for group in run.optimizer.param_groups]
        with pytest.raises(NotImplementedError):
            LRScheduler(scheduler)(run.trainer)
        assert [group["lr"] for group in run.optimizer.param_groups] == before


@pytest.mark.parametrize("name", ["SequentialLR", "ChainedScheduler"])
def test_the_schedule_of_what_is_composed_is_driven(name: str) -> None:
    """What the error and the docs say to give instead."""
    optimizer = steprule.SGD(network().parameters(), lr=0.1)
    composed = COMPOSED[name](OURS, optimizer)
    expected = [composed.lr_at(k)[0] for k in range(8)]

    def schedule(optimizer: Any) -> Any:
        return LRScheduler(OURS.from_schedule(optimizer, composed.schedule))

    run = Run(lambda net: steprule.SGD(net.parameters(), lr=0.1), schedule).epochs(2)
    assert_close([used[0][0] for used in run.used], expected)


@pytest.mark.parametrize("whose", ["scheduler", "parameter scheduler"])
def test_warm_up_before_a_scheduler(whose: str) -> None:
    runs = []
    for optim, schedulers in KINDS:

        def schedule(optimizer: Any, schedulers: Any = schedulers) -> Any:
            after = (
                schedulers.ExponentialLR(optimizer, 0.8)
                if whose == "scheduler"
                else CosineAnnealingScheduler(optimizer, "lr", 0.1, 0.0, 12)
            )
            simulated: list[Any] = [None] * 10
            made = create_lr_scheduler_with_warmup(
                after, 0.0, 4, warmup_end_value=0.1, output_simulated_values=simulated
            )
            made.simulated = simulated
            return made

        make = (
            sgd_in_two_groups(optim)
            if whose != "scheduler"
            else (lambda net, optim=optim: optim.SGD(net.parameters(), lr=0.1))
        )
        run = Run(make, schedule).epochs()
        runs.append((*run.outcome, run.schedule.simulated))
    assert_close(*runs)


def test_ignites_plateau() -> None:
    runs = []
    for optim, _ in KINDS:
        run = Run(lambda net, optim=optim: optim.SGD(net.parameters(), lr=0.3))
        plateau = ReduceLROnPlateauScheduler(
            run.optimizer, "loss", trainer=run.trainer, mode="min", patience=0, threshold=0.5
        )

        def measure(engine: Any) -> None:
            engine.state.metrics["loss"] = engine.state.output

        run.trainer.add_event_handler(Events.EPOCH_COMPLETED, measure)
        run.trainer.add_event_handler(Events.EPOCH_COMPLETED, plateau)
        runs.append(run.epochs(6).outcome)
    assert_close(*runs)
    assert runs[1][1][-1][0][0] < 0.3


def test_gradients_are_accumulated() -> None:
    runs = [
        Run(sgd_in_two_groups(optim), gradient_accumulation_steps=2).epochs().outcome
        for optim in (steprule, torch.optim)
    ]
    assert_close(*runs)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_closure_has_gradients_within_no_grad_and_its_loss_is_the_output(name: str) -> None:
    """An update of one's own that bounds the weights in place, as a critic's are."""

    def run(optim: Any) -> Any:
        net, losses = network(), []
        optimizer = getattr(optim, name)(net.parameters(), **options_of(name))

        @torch.no_grad()
        def update(engine: Engine, batch: Any) -> float:
            def closure() -> Any:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(net(batch[0]), batch[1])
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            for param in net.parameters():
                param.clamp_(-0.5, 0.5)
            return loss.item()

        trainer = Engine(update)
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: losses.append(engine.state.output)
        )
        trainer.run(loader(), max_epochs=2)
        return losses, list(net.parameters())

    assert_close(run(steprule), run(torch.optim))


def test_a_scaler_skips_steps_of_both() -> None:
    runs = []
    for optim, _ in KINDS:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=2)
        run = Run(sgd_in_two_groups(optim))

        def update(_: Any, batch: Any, run: Any = run, scaler: Any = scaler) -> float:
            run.optimizer.zero_grad()
            loss = 64 * nn.functional.mse_loss(run.net(batch[0]), batch[1])
            scaler.scale(loss).backward()
            scaler.step(run.optimizer)
            scaler.update()
            return loss.item()

        run.trainer._process_function = update
        run.epochs()
        runs.append((run.losses, scaler.get_scale(), list(run.net.parameters())))
    assert_close(*runs)


RESUMED: dict[str, Callable[[Any], Any]] = {
    "SGD": sgd_in_two_groups(steprule),
    "8 bits": lambda net: steprule.AdamW(net.parameters(), lr=0.01, state_format="int8"),
    "Lookahead": lambda net: steprule.Lookahead(steprule.Adam(net.parameters(), lr=0.01), k=3),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_from_a_checkpoint_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    def build() -> tuple[Any, dict[str, Any]]:
        run = Run(RESUMED[name], lambda o: LRScheduler(OURS.CosineAnnealingLR(o, 16)))
        parts = {"net": run.net, "optimizer": run.optimizer, "schedule": run.schedule}
        return run, {**parts, "trainer": run.trainer}

    whole, parts = build()
    save = Checkpoint(parts, DiskSaver(str(tmp_path), create_dir=False), n_saved=None)
    whole.trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), save)
    whole.epochs(4)

    again, parts = build()
    (path,) = tmp_path.glob("*.pt")
    Checkpoint.load_objects(parts, torch.load(path, weights_only=True))
    again.epochs(4)
    assert_same(again.losses, whole.losses[8:])
    assert_same(again.used, whole.used[8:])
    assert_same(list(again.net.parameters()), list(whole.net.parameters()))
    assert_same(again.optimizer.state_dict(), whole.optimizer.state_dict())


def test_the_range_test_of_ignite_leaves_all_as_it_was() -> None:
    found = []
    for optim, _ in KINDS:
        run = Run(sgd_in_two_groups(optim))
        run.epochs(1)
        before = [param.detach().clone() for param in run.net.parameters()]
        state = run.optimizer.state_dict()
        finder = FastaiLRFinder()
        to_save = {"model": run.net, "optimizer": run.optimizer}
        with finder.attach(run.trainer, to_save, num_iter=12, start_lr=1e-4, end_lr=30.0) as trial:
            trial.run(loader(96))
        results = finder.get_results()
        found.append((results["lr"], results["loss"], finder.lr_suggestion()))
        assert_same(list(run.net.parameters()), before)
        assert_close(run.optimizer.state_dict()["param_groups"], state["param_groups"])
    assert_close(*found)


def test_the_example_in_the_docs() -> None:
    run_example("Ignite")
