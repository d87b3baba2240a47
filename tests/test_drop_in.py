"""steprule in torch.optim's place: its classes, its module paths, its names."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import gradients, make_params, needs_torch
from torch import nn

import steprule
from steprule import rules
from steprule.rules import OPTIMIZERS

NAMES = sorted(cls.__name__ for cls in OPTIMIZERS.values())
BOTH = sorted(name for name in NAMES if hasattr(torch.optim, name))
TORCHS_FOLDER = Path(torch.optim.__file__).parent


def made(name: str, **options: Any) -> tuple[list[torch.Tensor], Any]:
    params = make_params("Muon")
    return params, OPTIMIZERS[name.lower()](params, **options)


@pytest.mark.parametrize("name", BOTH)
def test_an_optimizer_is_an_instance_of_torchs_class(name: str) -> None:
    theirs = getattr(torch.optim, name)
    assert isinstance(made(name)[1], theirs)
    assert issubclass(OPTIMIZERS[name.lower()], theirs)
    assert OPTIMIZERS[name.lower()].__module__.startswith("steprule.")


@pytest.mark.parametrize("name", BOTH)
def test_and_of_no_other_class_than_torchs_is(name: str) -> None:
    if name == "AdamW":
        needs_torch("2.9", "AdamW is no Adam")
    ours, theirs = made(name)[1], getattr(torch.optim, name)
    for other in BOTH:
        cls = getattr(torch.optim, other)
        assert isinstance(ours, cls) == issubclass(theirs, cls)


def test_an_optimizer_that_torch_has_not_needs_nothing() -> None:
    @steprule.rule
    def own(param, grad, *, lr):  # type: ignore[no-untyped-def]
        return param - lr * grad

    cls = steprule.make_optimizer(own, lr=0.1)
    assert cls.__bases__ == (steprule.Optimizer,)


@contextmanager
def calls_of_torchs_files() -> Iterator[set[str]]:
    """Functions of torch/optim/*.py that are called meanwhile, by file and name."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent == TORCHS_FOLDER:
            seen.add(f"{file.name}:{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_torchs_class_runs_in_a_life(name: str) -> None:
    def closure() -> Any:
        return torch.zeros(())

    with calls_of_torchs_files() as seen:
        params, optimizer = made(name)
        for _ in gradients(params, 2):
            if name == "SparseAdam":
                for param in params:
                    param.grad = param.grad.to_sparse()
            optimizer.step(closure)
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.zero_grad()
        optimizer.zero_grad(set_to_none=False)
        if name != "LBFGS":  # whose state is of one problem
            optimizer.add_param_group({"params": [torch.ones(2, 2, requires_grad=True)]})
        for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            repr(copied)
            copied.step(closure)
        optimizer.register_step_post_hook(lambda *_: None)
        optimizer.step(closure)
    # torch's base class is there for the registration of hooks.
    assert seen <= {"optimizer.py:register_step_post_hook"}


# What torch's classes have and ours have not: there for who asks, and never called by us.
REACHABLE = {
    "_init_group",
    *("_add_grad", "_clone_param", "_directional_evaluate", "_gather_flat_grad", "_numel"),
    "_set_param",
}


@pytest.mark.parametrize("name", BOTH)
def test_of_torchs_methods_only_helpers_show_through(name: str) -> None:
    cls = OPTIMIZERS[name.lower()]
    shown = {
        attribute
        for attribute in dir(cls)
        if inspect.isfunction(found := inspect.getattr_static(cls, attribute))
        and found.__module__.startswith("torch.optim.")
        and found.__module__ != "torch.optim.optimizer"
    }
    assert shown <= REACHABLE


def test_a_subclass_may_take_torchs_lists_of_a_group() -> None:
    """Steps of one's own that call `_init_group`, as copies of torch's code do."""

    class Signs(steprule.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                params: list[Any] = []
                grads: list[Any] = []
                self._init_group(group, params, grads, [], [], [], [])  # type: ignore[attr-defined]
                for param, grad in zip(params, grads, strict=True):
                    param.sub_(group["lr"] * grad.sign())

    param = nn.Parameter(torch.ones(2))
    optimizer = Signs([param], lr=0.5)
    param.grad = torch.ones(2)
    optimizer.step()
    assert param.tolist() == [0.5, 0.5]
    assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}


def test_lbfgs_has_the_helpers_that_scripts_borrow() -> None:
    """A gradient's norm or a line search of one's own, by the private parts of torch's class."""
    found = []
    for package in (torch.optim, steprule):
        params = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
        params[0].grad = torch.full((2, 3), 2.0)
        optimizer: Any = package.LBFGS(params)
        assert optimizer._params is optimizer.param_groups[0]["params"]
        start = optimizer._clone_param()
        with torch.no_grad():
            optimizer._add_grad(0.5, optimizer._gather_flat_grad())
        moved = [param.detach().clone() for param in params]
        with torch.no_grad():
            optimizer._set_param(start)
        found.append((optimizer._numel(), optimizer._gather_flat_grad(), moved, params))
    torch.testing.assert_close(*found)


PATHS = sorted(
    (path.stem, name)
    for path in TORCHS_FOLDER.glob("*.py")
    if path.stem not in ("__init__", "_functional", "lr_scheduler", "swa_utils", "_stateless")
    for name in vars(importlib.import_module(f"torch.optim.{path.stem}"))
    if name in (*NAMES, "Optimizer") and (path.stem == "optimizer" or name != "Optimizer")
)


@pytest.mark.parametrize(("path", "name"), PATHS)
def test_torchs_module_paths(path: str, name: str) -> None:
    module = importlib.import_module(f"steprule.{path}")
    assert getattr(steprule, path) is module
    assert getattr(module, name) is getattr(steprule, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_each_optimizers_own(name: str) -> None:
    cls = OPTIMIZERS[name.lower()]
    module = importlib.import_module(f"steprule.{cls.__module__.rpartition('.')[2]}")
    assert getattr(module, name) is cls


@pytest.mark.parametrize(
    "line",
    [
        "import steprule as optim; optim.adam.Adam",
        "from steprule.adam import Adam",
        "from steprule.adamw import AdamW",
        "from steprule.sgd import *; SGD",
        "import steprule.sgd; steprule.sgd.SGD",
        "from steprule import sgd; sgd.SGD",
        "from steprule._adafactor import Adafactor",
        "from steprule.lbfgs import LBFGS",
        "from steprule.optimizer import Optimizer, required, _use_grad_for_differentiable",
        "from steprule.optimizer import register_optimizer_step_pre_hook",
        "from steprule.lr_scheduler import LRScheduler",
        "from steprule.swa_utils import AveragedModel",
        "from steprule import *; Adam; Optimizer; lr_scheduler",
        "from steprule.rules.adam import Adam",
    ],
)
def test_lines_at_the_head_of_scripts(line: str) -> None:
    exec(line, {})


def test_a_path_is_there_from_the_first_import_on() -> None:
    subprocess.run([sys.executable, "-c", "import steprule.sgd; steprule.sgd.SGD"], check=True)


def test_a_name_that_nobody_has_is_said_to_be_missing() -> None:
    with pytest.raises(AttributeError, match=r"steprule\.optimizer.*'nothing'"):
        steprule.optimizer.nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        importlib.import_module("steprule.nothing")


@pytest.mark.skipif(
    not hasattr(torch.optim, "swap_in_optimizer_params_and_state"), reason="of torch 2.13"
)
def test_torchs_functions_on_optimizers_are_there() -> None:
    params, optimizer = made("Adam")
    for _ in gradients(params, 1):
        optimizer.step()
    others = {str(i): torch.zeros_like(param) for i, param in enumerate(params)}
    for other in others.values():
        other.grad = torch.ones_like(other)
    before, saved = [param.clone() for param in params], copy.deepcopy(optimizer.state_dict())
    with steprule.swap_in_optimizer_params_and_state(  # type: ignore[attr-defined]
        optimizer, others, copy.deepcopy(saved)
    ):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert all((other != 0).all() for other in others.values())
    torch.testing.assert_close(optimizer.state_dict(), saved, rtol=0, atol=0)


def test_dir_shows_what_is_public() -> None:
    shown = {name for name in dir(steprule) if not name.startswith("_")}
    assert shown == set(steprule.__all__)
    assert shown >= {*NAMES, "Optimizer", "lr_scheduler", "swa_utils", "schedules", "rule", "warm"}
    modules = {name for name in shown if inspect.ismodule(getattr(steprule, name))}
    assert modules == {"lr_scheduler", "ops", "optimizer", "schedules", "swa_utils"}
    assert "__version__" in dir(steprule)
    assert set(torch.optim.__all__) - {"swap_in_optimizer_params_and_state"} <= shown


@pytest.mark.parametrize("module", [steprule, rules])
def test_type_checkers_see_every_optimizer(module: Any) -> None:
    """They know an `__all__` that they can read; one that is computed would hide what it adds."""
    tree = ast.parse(Path(module.__file__).read_text())
    assert not any("__all__" in ast.unparse(node) for node in tree.body if type(node) is ast.Assign)
    names = {alias.asname for node in ast.walk(tree) for alias in getattr(node, "names", [])}
    assert set(NAMES) <= names or module is steprule  # which takes them from there by a star


@pytest.mark.parametrize("name", ["Adagrad", "Adam", "AdamW", "SGD"])
def test_fused_on_meta_is_refused_at_the_step(name: str) -> None:
    """And nothing is changed: the model may be given its memory afterwards."""
    for package in (torch.optim, steprule):
        net = nn.Linear(2, 3, device="meta")
        optimizer = getattr(package, name)(net.parameters(), fused=True)
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        with pytest.raises(RuntimeError, match="`fused=True` requires all the params to be float"):
            optimizer.step()
        if package is steprule:
            assert all(entry["step"] == 0 for entry in optimizer.state.values())
        optimizer.zero_grad()
        net.to_empty(device="cpu")
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        optimizer.step()
