"""`steprule warm`: after it, a first step in a new process compiles nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_custom_rules import Lion

import steprule
from steprule.cli import main
from steprule.cli.warm import parse_options
from steprule.engines.kernel_cache import cache as kernel_cache
from steprule.rules import OPTIMIZERS
from steprule.warming import DTYPES, Job, jobs_for, run_jobs

WARM = """
import steprule
first = steprule.warm("adagrad", "SparseAdam", steprule.LBFGS)
assert not first.present, first
second = steprule.warm("adagrad", "SparseAdam", steprule.LBFGS)
assert not second.compiled and second.present == first.compiled, second
"""
STEPS = """
import sys, torch, steprule
from steprule.engines.kernel_cache import cache as kernel_cache
from steprule.rules import OPTIMIZERS

def refuse(source, *_):
    raise AssertionError("compiled: " + source)

kernel_cache._compile = refuse
for cls, options, is_sparse in [
    (steprule.Adagrad, {"lr": 0.3}, False),
    (steprule.Adagrad, {"weight_decay": 0.01, "lr_decay": 0.1}, False),
    (steprule.Adagrad, {}, True),
    (steprule.SparseAdam, {"betas": (0.5, 0.6)}, True),
]:
    param = torch.nn.Parameter(torch.ones(7, 3))
    optimizer = cls([param], **options)
    param.grad = torch.ones(7, 3).to_sparse(1) if is_sparse else torch.ones(7, 3)
    optimizer.step()
    assert optimizer.explain().rows[0].engine == ("rows" if is_sparse else "fused")
    assert not torch.equal(param, torch.ones(7, 3))

from steprule.quasi_newton import passes
passes.LARGE = 0
param = torch.nn.Parameter(torch.ones(7, 3))
optimizer = steprule.LBFGS([param], line_search_fn="strong_wolfe")

def closure():
    optimizer.zero_grad()
    loss = (param**4 - param).sum()
    loss.backward()
    return loss

for _ in range(3):
    optimizer.step(closure)
assert "steprule.engines.compiler.lowering" not in sys.modules
"""


def run(script: str, folder: Path) -> None:
    environment = {
        **os.environ,
        "STEPRULE_CACHE_DIR": str(folder),
        "PYTHONWARNINGS": "error",
    }
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Sources that were to be compiled; what is then kept on disk is not for running."""
    sources: list[str] = []

    def note(source: str, names: Any) -> bytes:
        sources.append(source)
        return b""

    monkeypatch.setattr(kernel_cache, "_compile", note)
    monkeypatch.setattr(kernel_cache, "_library", _absent)
    return sources


class AskedError(Exception):
    """A step got as far as wanting its kernel."""


def _absent(*_: Any) -> Any:
    raise AskedError


def keep(*optimizers: Any, **how: Any) -> list[str]:
    """Labels of the jobs that asked for a kernel."""
    return [job.label for job in jobs_for(optimizers, ["float32"], **how) if asks(job)]


def asks(job: Job) -> bool:
    try:
        job.run()
    except AskedError:
        return True
    return False


def test_a_new_process_compiles_nothing(tmp_path: Path) -> None:
    run(WARM, tmp_path)
    run(STEPS, tmp_path)


def test_everyone_may_read_what_is_kept_and_nobody_else_write(
    folder: Path, compilations: list[str]
) -> None:
    """An image is built by root, and run by another user."""
    keep("sgd")
    files = list(folder.rglob("*.kernel"))
    assert files
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {"0o644"}
    assert files[0].parent.stat().st_mode & 0o022 == 0


def test_all_optimizers_with_kernels_by_default(folder: Path, compilations: list[str]) -> None:
    jobs = {job.label: job for job in jobs_for([], ["float32"])}
    asked = {job.optimizer for job in jobs.values()}
    compiled = {
        cls.__name__
        for cls in steprule.rules.OPTIMIZERS.values()
        if cls.rule is not None and cls.rule.is_recorded
    }
    assert asked == {"", "LBFGS", *compiled}
    assert {
        "SGD float32",
        "SGD float32, sparse gradients",
        "SGD(momentum=0.1, nesterov=True, weight_decay=0.1) float32",
        "Adam(amsgrad=True, weight_decay=0.1) float32",
        "AdamW(weight_decay=0.0) float32",
        "RMSprop(momentum=0.1, centered=True) float32",
        "Adagrad float32, sparse gradients",
        "SparseAdam float32, sparse gradients",
    } <= set(jobs)
    assert "SGD(nesterov=True) float32" not in jobs
    assert "SGD(weight_decay=0.1) float32, sparse gradients" not in jobs


def test_a_kernel_in_memory_is_written_too(folder: Path) -> None:
    """The folder may be another one than when this process first loaded the kernel."""
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = steprule.SGD([param])
    optimizer.step()
    for file in folder.rglob("*.kernel"):
        file.unlink()
    warmed = steprule.warm("sgd", momentum=0)
    assert "SGD(momentum=0) float32" in warmed.compiled
    assert list(folder.rglob("*.kernel"))
    optimizer.step()
    assert warmed.folders == (folder / "steprule",)


def test_a_rule_of_ones_own(folder: Path, compilations: list[str]) -> None:
    labels = keep(Lion)
    assert "Lion(damped=True, weight_decay=0.1) float32" in labels
    assert len(labels) == len(compilations) == 6  # the loops of all, and two switches


def test_hooks_modes_and_defaults_of_the_caller_do_not_matter(
    folder: Path, compilations: list[str]
) -> None:
    calls: list[Any] = []
    handle = steprule.register_optimizer_step_pre_hook(lambda *args: calls.append(args))
    before = torch.get_default_dtype()
    try:
        keep("adam")
        plain = list(compilations)
        torch.set_default_dtype(torch.bfloat16)
        with torch.inference_mode(), torch.device("meta"):
            keep("adam")
    finally:
        torch.set_default_dtype(before)
        handle.remove()
    assert compilations == plain
    assert not calls


def test_what_has_no_kernel_is_said(folder: Path, compilations: list[str]) -> None:
    @steprule.rule(elementwise=False)
    def whole(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad

    jobs = jobs_for([steprule.make_optimizer(whole, lr=0.1), steprule.Optimizer], ["float32"])[2:]
    warmed = run_jobs(jobs)
    assert "Whole float32: the rule works on whole tensors, not on elements" in warmed.left_out
    assert "Optimizer float32: it has no rule" in warmed.left_out
    assert "0 compiled, 0 there already" in str(warmed)


def test_formats_are_compiled_for_large_parameters(folder: Path, compilations: list[str]) -> None:
    options = {"state_format": "int8", "param_rounding": "split24"}
    (job,) = jobs_for(["adamw"], ["bfloat16"], [options])[2:]
    with pytest.raises(AskedError):
        job.run()
    param = torch.zeros(5000, dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.zeros_like(param)
    with pytest.raises(AskedError):
        steprule.AdamW([param], **options).step()
    assert len(set(compilations)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str, folder: Path, compilations: list[str]) -> None:
    labels = []
    for job in jobs_for(["asgd"], [dtype, DTYPES[dtype]], [{}])[2:]:
        with pytest.raises(AskedError):
            job.run()
        labels.append(job.label)
    assert len(labels) == (2 if dtype == "float64" else 1)
    assert all(f"load_{dtype}" in source for source in compilations)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["adm"], {}, ValueError, "unknown optimizer 'adm' (did you mean 'adam'?)"),
        ([torch.optim.Adam], {}, ValueError, "unknown optimizer"),
        (["sgd"], {"dtypes": ["int8"]}, ValueError, "unknown dtype 'int8'"),
        (["sgd"], {"dtypes": [torch.complex32]}, ValueError, "unknown dtype 'complex32'"),
        (["sgd"], {"momentun": 1}, TypeError, "unknown option 'momentun' (did you mean 'mom"),
        (["sgd"], {"momentum": -1}, ValueError, "Invalid momentum value: -1"),
    ],
)
def test_refusals(
    folder: Path, arguments: Any, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        steprule.warm(*arguments, **options)
    assert text in str(caught.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["foo"], f"unknown optimizer 'foo'; valid: {', '.join([*OPTIMIZERS][:2])}"),
        (["sgd", "--dtypes", "float31"], "unknown dtype 'float31' (did you mean 'float32'?)"),
        (["sgd", "--dtypes", ""], "unknown dtype ''"),
        (["sgd", "--options", "bar=1"], "SGD: unknown option 'bar'; valid: lr, momentum"),
        (["sgd", "--options", "momentum"], "expected NAME=VALUE, got 'momentum'"),
        (["sgd", "--options", "lr=1,lr=2"], "lr is given twice"),
        (["sgd", "--options", "nesterov=true"], "requires a momentum"),
        (["sgd", "--options", "momentum=high"], "momentum must be a number"),
        (["--options", "lr=1"], "--options: name the optimizers"),
        (["--colour"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_on_the_command_line(
    arguments: list[str], expected: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["warm", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("steprule: ")
    assert err.count("\n") == 1
    assert expected in err
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike a step, which goes on without: nothing would have come of it."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(blocked))
    monkeypatch.setattr(kernel_cache, "_compile", lambda *_: b"")
    assert main(["warm", "sgd"]) == 2
    err = capsys.readouterr().err
    assert "set STEPRULE_CACHE_DIR to a folder that can be written to" in err
    assert err.count("\n") == 1


def test_the_command_says_what_it_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["warm", "sgd", "--options", "lr=0.5,nesterov=True,momentum=0.9"]
    assert main(command) == 0
    label = "SGD(lr=0.5, nesterov=True, momentum=0.9) float32"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "compiled    the checks before a step, for all"
    assert lines[2] == f"compiled    {label}"
    assert lines[3].startswith(f"3 compiled, 0 there already, in {folder / 'steprule'} (")
    assert main(command) == 0
    assert f"there       {label}" in capsys.readouterr().out


def test_options_as_typed() -> None:
    assert parse_options("momentum=0.9, nesterov=TRUE,betas=(0.9,0.99),fused=none,x=y,n=[1,2]") == {
        "momentum": 0.9,
        "nesterov": True,
        "betas": (0.9, 0.99),
        "fused": None,
        "x": "y",
        "n": [1, 2],
    }
