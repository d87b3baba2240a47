"""skorch's nets, scikit-learn's clones and searches, with steprule's optimizers and schedulers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from client_runs import SHARED, assert_close, assert_same, options_of, rows, run_example
from torch import nn

import steprule
from steprule.schedules import linear

skorch = pytest.importorskip("skorch")

from sklearn.base import clone  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from skorch.callbacks import Callback, LRScheduler  # noqa: E402

OURS, TORCH_SCHEDULERS = steprule.lr_scheduler, torch.optim.lr_scheduler
INPUTS, TARGETS = (tensor.numpy() for tensor in rows())
CLASSES = (TARGETS[:, 0] > 0).astype(np.int64)


class Small(nn.Module):
    """skorch makes the module itself, more than once."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, outputs)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(inputs).tanh())


def regressor(optimizer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    quiet = {"verbose": 0, "train_split": None, "batch_size": 8, "max_epochs": 3, "lr": 0.01}
    net = skorch.NeuralNetRegressor(Small, optimizer=optimizer, **{**quiet, **options})
    return net.initialize()


def classifier(optimizer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    quiet = {"verbose": 0, "train_split": None, "batch_size": 8, "max_epochs": 3}
    return skorch.NeuralNetClassifier(
        Small,
        module__outputs=2,
        criterion=nn.CrossEntropyLoss,
        optimizer=optimizer,
        **{**quiet, **options},
    )


def outcome(net: Any) -> Any:
    return net.history[:, "batches", :, "train_loss"], list(net.module_.parameters())


def beside(ours: Any, theirs: Any, **options: Any) -> Any:
    fits = [regressor(cls, **options).partial_fit(INPUTS, TARGETS) for cls in (ours, theirs)]
    assert_close(*map(outcome, fits))
    return fits[0]


@pytest.mark.parametrize("name", SHARED)
def test_a_fit_is_that_with_torchs_class(name: str) -> None:
    options = {f"optimizer__{key}": value for key, value in options_of(name).items()}
    beside(getattr(steprule, name), getattr(torch.optim, name), **options)


def test_parameter_groups_by_pattern() -> None:
    patterns = [("first.*", {"lr": 0.002}), ("*.bias", {"weight_decay": 0.1})]
    ours = beside(steprule.AdamW, torch.optim.AdamW, optimizer__param_groups=patterns)
    assert [group["lr"] for group in ours.optimizer_.param_groups] == [0.002, 0.01, 0.01]


def test_lbfgs_gets_a_closure() -> None:
    """In float32 and few iterations, before rounding has grown in the line search."""
    search = {"optimizer__line_search_fn": "strong_wolfe", "optimizer__max_iter": 2}
    beside(steprule.LBFGS, torch.optim.LBFGS, lr=1.0, max_epochs=1, batch_size=-1, **search)


def test_options_are_set_between_fits() -> None:
    fits = []
    for cls in (steprule.SGD, torch.optim.SGD):
        net = regressor(cls, optimizer__momentum=0.9).partial_fit(INPUTS, TARGETS)
        net.set_params(optimizer__lr=0.001, optimizer__param_groups__0__momentum=0.5)
        net.partial_fit(INPUTS, TARGETS)
        assert net.optimizer_.param_groups[0]["lr"] == 0.001
        fits.append(outcome(net))
    assert_close(*fits)


POLICIES: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "CosineAnnealingLR": {"T_max": 12, "step_every": "batch"},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "step_every": "batch"},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 13, "step_every": "batch"},
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_scheduler_as_policy(name: str) -> None:
    fits = []
    for optim, schedulers in ((steprule, OURS), (torch.optim, TORCH_SCHEDULERS)):
        callback = LRScheduler(getattr(schedulers, name), event_name="lr", **POLICIES[name])
        net = regressor(optim.SGD, optimizer__momentum=0.9, callbacks=[callback])
        net.partial_fit(INPUTS, TARGETS)
        by_batch = "step_every" in POLICIES[name]
        lrs = net.history[:, "batches", :, "lr"] if by_batch else net.history[:, "lr"]
        fits.append((outcome(net), lrs, callback.simulate(8, 0.1).tolist()))
    assert_close(*fits)


def plateau(optimizer: Any, last_epoch: int, **options: Any) -> Any:
    """skorch hands on the epoch to every policy but torch's own class."""
    return OURS.ReduceLROnPlateau(optimizer, **options)


def test_a_plateau_as_policy() -> None:
    fits = []
    sides = (
        (steprule, plateau),
        (steprule, "ReduceLROnPlateau"),
        (torch.optim, "ReduceLROnPlateau"),
    )
    for optim, policy in sides:
        options = {"monitor": "train_loss", "patience": 0, "threshold": 0.5, "event_name": "lr"}
        net = regressor(optim.SGD, lr=0.3, max_epochs=6, callbacks=[LRScheduler(policy, **options)])
        net.partial_fit(INPUTS, TARGETS)
        fits.append((outcome(net), net.history[:, "lr"]))
    assert_close(fits[0], fits[2])
    assert_same(fits[0], fits[1])
    assert fits[0][1][-1] < 0.3


def test_a_schedule_in_place_of_lr() -> None:
    schedule = linear(0.1, 0, steps=12)
    net = regressor(steprule.SGD, lr=schedule).partial_fit(INPUTS, TARGETS)
    assert net.optimizer_.param_groups[0]["lr"] == 0
    copied = clone(net)  # which builds anew from the parameters, and compares them
    assert copied.lr == schedule
    torch.manual_seed(0)
    assert_same(outcome(copied.fit(INPUTS, TARGETS)), outcome(net))


RESUMED: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": steprule.AdamW},
    "8 bits": {
        "optimizer": steprule.AdamW,
        "optimizer__state_format": "int8",
        "optimizer__ema_decay": 0.9,
    },
    "a schedule": {"optimizer": steprule.NAdam, "lr": linear(0.05, 0, steps=20)},
    "ScheduleFree": {"optimizer": steprule.ScheduleFreeSGD, "lr": 0.1},
}


@pytest.mark.parametrize("name", RESUMED)
def test_saved_parameters_go_on_as_before(name: str, tmp_path: Path) -> None:
    net = regressor(**RESUMED[name]).partial_fit(INPUTS, TARGETS)
    files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer", "history")}
    net.save_params(**files)
    pickled = pickle.dumps(net)
    net.partial_fit(INPUTS, TARGETS)

    again = regressor(**RESUMED[name])
    again.load_params(**files)
    again.partial_fit(INPUTS, TARGETS)
    assert_same(outcome(again), outcome(net))
    assert_same(again.optimizer_.state_dict(), net.optimizer_.state_dict())

    for copied in (pickle.loads(pickled), copy.deepcopy(pickle.loads(pickled))):
        copied.partial_fit(INPUTS, TARGETS)
        assert_same(outcome(copied), outcome(net))


def test_parameters_saved_with_torchs_class_go_on_with_ours(tmp_path: Path) -> None:
    files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer")}
    theirs = regressor(torch.optim.AdamW).partial_fit(INPUTS, TARGETS)
    theirs.save_params(**files)
    ours = regressor(steprule.AdamW)
    ours.load_params(**files)
    fits = [net.partial_fit(INPUTS, TARGETS) for net in (ours, theirs)]
    assert_close(*(list(net.module_.parameters()) for net in fits))


def test_a_search_over_optimizers() -> None:
    grid = {"lr": [0.01, 0.3], "optimizer": [steprule.Adam, steprule.SGD, steprule.Lion]}
    search = GridSearchCV(classifier(steprule.Adam), grid, cv=2, scoring="accuracy")
    search.fit(INPUTS, CLASSES)
    assert search.best_params_["optimizer"] in grid["optimizer"]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.optimizer_.param_groups[0]["lr"] == search.best_params_["lr"]


def sam(params: Any, rho: float = 0.05, **options: Any) -> Any:
    """A function takes a class's place: its options are skorch's ``optimizer__…``."""
    return steprule.SAM(steprule.SGD(params, **options), rho=rho)


def test_sam_round_sgd() -> None:
    net = regressor(sam, optimizer__rho=0.1, optimizer__momentum=0.9).partial_fit(INPUTS, TARGETS)
    torch.manual_seed(0)
    module = Small()
    optimizer = sam(module.parameters(), rho=0.1, lr=0.01, momentum=0.9)
    for start in [0, 8, 16, 24] * 3:

        def closure(start: int = start) -> torch.Tensor:
            optimizer.zero_grad()
            batch = slice(start, start + 8)
            inputs, targets = map(torch.as_tensor, (INPUTS[batch], TARGETS[batch]))
            loss = nn.functional.mse_loss(module(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_same(list(net.module_.parameters()), list(module.parameters()))


class ModeOfOptimizer(Callback):
    """Puts a schedule-free optimizer into the mode in which the module is run next."""

    def on_batch_begin(self, net: Any, batch: Any = None, training: bool = False, **_: Any) -> None:
        net.optimizer_.train() if training else net.optimizer_.eval()

    def on_train_end(self, net: Any, **_: Any) -> None:
        net.optimizer_.eval()


def test_schedule_free_predicts_by_the_average() -> None:
    split = skorch.dataset.ValidSplit(4)
    modes = ModeOfOptimizer()
    options = {"train_split": split, "callbacks": [modes], "lr": 0.1}
    net = regressor(steprule.ScheduleFreeSGD, **options).partial_fit(INPUTS, TARGETS)
    average = net.predict(INPUTS)
    assert "y" in net.optimizer_.state_dict()["state"][0]  # where training goes on
    net.optimizer_.train()
    assert not np.array_equal(net.predict(INPUTS), average)
    net.partial_fit(INPUTS, TARGETS)
    assert net.history[-1, "valid_loss"] < net.history[0, "valid_loss"]


def test_the_example_in_the_docs() -> None:
    run_example("skorch")
