"""Pyro: `PyroOptim` and `PyroLRScheduler` make one optimizer a parameter, as parameters appear."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from client_runs import run_example
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.distributions import constraints

import steprule
from steprule import lr_scheduler

# float32, 30 steps: the roundings of tests/helpers.py for 50.
CLOSE = {"rtol": 2e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def own_parameters() -> Iterator[None]:
    """Pyro keeps parameters in a store of the process."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


DATA = torch.linspace(-1.0, 3.0, 20)


def model(data: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("seen", dist.Normal(mean, scale), obs=data)


def guide(data: Tensor) -> None:
    at = pyro.param("at", torch.tensor(0.5))
    log_at = pyro.param("log_at", torch.tensor(0.1))
    width = pyro.param("width", torch.tensor([0.3, 0.2]), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(at, width[0]))
    pyro.sample("scale", dist.LogNormal(log_at, width[1]))


def inference(optimizer: PyroOptim) -> SVI:
    return SVI(model, guide, optimizer, Trace_ELBO(num_particles=2))


def run(svi: SVI, steps: int, scheduler: Any = None) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(svi.step(DATA))
        if scheduler is not None:
            scheduler.step()
    return losses


def parameters() -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}


def started(optimizer: PyroOptim, steps: int, scheduler: Any = None) -> Any:
    """Losses and parameters after steps from the usual start."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return run(inference(optimizer), steps, scheduler), parameters()


def options_of(name: str) -> dict[str, float]:
    """The learning rate, by the parameter's name."""
    return {"lr": 0.05 if name == "width" else 0.01}


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD", "Adagrad", "NAdam"])
def test_inference_takes_torchs_steps(name: str) -> None:
    options = {"lr": 0.001 if name == "SGD" else 0.02}
    theirs = started(PyroOptim(getattr(torch.optim, name), options), 30)
    ours = started(PyroOptim(getattr(steprule, name), options), 30)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert sum(ours[0][-5:]) < sum(ours[0][:5])


def test_options_by_parameter_and_clipping() -> None:
    found = []
    for package in (torch.optim, steprule):
        optimizer = PyroOptim(package.Adam, options_of, {"clip_norm": 1.0, "clip_value": 0.5})
        found.append(started(optimizer, 30))
        rates = {
            pyro.get_param_store().param_name(param): made.param_groups[0]["lr"]
            for param, made in optimizer.optim_objs.items()
        }
        assert rates == {"at": 0.01, "log_at": 0.01, "width": 0.05}
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_our_own_clipping_is_pyros() -> None:
    """Each optimizer has one parameter, so that the norm is that of `clip_norm`."""
    theirs = started(PyroOptim(torch.optim.Adam, {"lr": 0.02}, {"clip_norm": 1.0}), 20)
    ours = started(PyroOptim(steprule.Adam, {"lr": 0.02, "clip_grad_norm": 1.0}), 20)
    # clip_grad_norm_ divides by the norm plus 1e-6
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Lion", "AdEMAMix", "ScheduleFreeAdamW", "ADOPT"])
def test_rules_that_torch_has_not(name: str) -> None:
    cls = getattr(steprule, name)
    losses, found = started(PyroOptim(cls, {"lr": 0.01}), 60)
    assert all(value.isfinite().all() for value in found.values())
    assert sum(losses[-10:]) < sum(losses[:10])


SCHEDULERS = [
    ("ExponentialLR", {"gamma": 0.9}),
    ("StepLR", {"step_size": 5, "gamma": 0.5}),
    ("OneCycleLR", {"max_lr": 0.05, "total_steps": 25}),
    ("CosineAnnealingLR", {"T_max": 20}),
]


@pytest.mark.parametrize(("name", "options"), SCHEDULERS, ids=[name for name, _ in SCHEDULERS])
@pytest.mark.parametrize("whose", ["ours", "mixed"])
def test_schedulers(name: str, options: dict[str, Any], whose: str) -> None:
    """Our scheduler on our optimizer, and torch's scheduler on ours, beside torch's on torch's."""
    found = []
    mine = lr_scheduler if whose == "ours" else torch.optim.lr_scheduler
    for package, schedulers in ((torch.optim, torch.optim.lr_scheduler), (steprule, mine)):
        args = {"optimizer": package.Adam, "optim_args": {"lr": 0.02}, **options}
        scheduler = PyroLRScheduler(getattr(schedulers, name), args)
        found.append(started(scheduler, 20, scheduler))
        rates = [made.get_last_lr() for made in scheduler.optim_objs.values()]
        found[-1] = (*found[-1], rates)
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_a_plateau() -> None:
    found = []
    for package, schedulers in (
        (torch.optim, torch.optim.lr_scheduler),
        (steprule, lr_scheduler),
    ):
        args = {"optimizer": package.Adam, "optim_args": {"lr": 0.02}, "patience": 0}
        scheduler = PyroLRScheduler(schedulers.ReduceLROnPlateau, args)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = inference(scheduler)
        for _ in range(10):
            svi.step(DATA)
            scheduler.step(1.0)
        found.append((parameters(), [m.get_last_lr() for m in scheduler.optim_objs.values()]))
    assert found[1][1][0][0] < 0.01
    torch.testing.assert_close(*reversed(found), **CLOSE)


@pytest.mark.parametrize("how", ["state", "file"])
@pytest.mark.parametrize("is_scheduled", [False, True])
def test_a_resumed_inference_is_the_uninterrupted_one_bit_for_bit(
    how: str, is_scheduled: bool, tmp_path: Path
) -> None:
    def made() -> PyroOptim:
        if not is_scheduled:
            return PyroOptim(steprule.Adam, options_of)
        args = {"optimizer": steprule.Adam, "optim_args": {"lr": 0.02}, "gamma": 0.9}
        return PyroLRScheduler(lr_scheduler.ExponentialLR, args)

    first = made()
    started(first, 8, first if is_scheduled else None)
    # a state dict shows tensors that go on changing, as torch's does
    state, store = copy.deepcopy(first.get_state()), pyro.get_param_store()
    first.save(str(tmp_path / "optimizer"))
    store.save(str(tmp_path / "parameters"))
    seen = pyro.util.get_rng_state()
    expected = run(inference(first), 8, first if is_scheduled else None), parameters()

    pyro.clear_param_store()
    resumed = made()
    if how == "state":
        resumed.set_state(state)
    else:
        resumed.load(str(tmp_path / "optimizer"))
    store.load(str(tmp_path / "parameters"))
    pyro.util.set_rng_state(seen)
    found = run(inference(resumed), 8, resumed if is_scheduled else None), parameters()
    assert found[0] == expected[0]
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=0)


def test_state_of_torchs_optimizers_is_taken() -> None:
    theirs = PyroOptim(torch.optim.Adam, options_of)
    started(theirs, 8)
    state, seen = copy.deepcopy(theirs.get_state()), pyro.util.get_rng_state()
    kept = parameters()

    def resumed(optimizer: PyroOptim) -> Any:
        pyro.clear_param_store()
        for name, value in kept.items():
            constraint = constraints.positive if name == "width" else constraints.real
            pyro.param(name, value.clone(), constraint=constraint)
        optimizer.set_state(copy.deepcopy(state))
        pyro.util.set_rng_state(seen)
        return run(inference(optimizer), 8), parameters()

    torch.testing.assert_close(
        resumed(PyroOptim(steprule.Adam, options_of)),
        resumed(PyroOptim(torch.optim.Adam, options_of)),
        **CLOSE,
    )


def test_a_parameter_that_appears_later_gets_an_optimizer_then() -> None:
    found = []
    for package in (torch.optim, steprule):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optimizer = PyroOptim(package.Adam, {"lr": 0.02})

        def growing(data: Tensor) -> None:
            shift = pyro.param("shift", torch.tensor(0.2)) if len(data) > 10 else 0.0
            at = pyro.param("at", torch.tensor(0.5))
            pyro.sample("mean", dist.Normal(at + shift, 0.3))
            pyro.sample("scale", dist.LogNormal(0.0, 0.3))

        svi = SVI(model, growing, optimizer, Trace_ELBO())
        losses = [svi.step(DATA[:10]) for _ in range(4)]
        losses += [svi.step(DATA) for _ in range(4)]
        assert len(optimizer.optim_objs) == 2
        found.append((losses, parameters()))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_the_example_of_the_docs() -> None:
    run_example("Pyro")
