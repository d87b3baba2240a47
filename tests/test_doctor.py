"""`steprule doctor`: sound machines, broken ones, and what a report must not tell."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import steprule
from steprule import cli
from steprule.cli import main
from steprule.doctor import (
    Finding,
    Level,
    Report,
    compiling,
    examination,
    examine,
    hardware,
    installed,
    machine,
    privacy,
    self_test,
    threads,
    trials,
    versions,
)
from steprule.doctor import cache as cache_part
from steprule.doctor import engines as engines_part
from steprule.doctor.command import READER_LEFT, doctor
from steprule.doctor.finding import note
from steprule.doctor.report import lines_of
from steprule.engines import compiler, registry
from steprule.engines.kernel_cache import cache as kernel_cache
from steprule.engines.kernel_cache.folder import KernelFolder
from steprule.engines.native import switch

SOURCE = Path(steprule.__file__).parent
ROOT = Path(__file__).parent.parent


def found(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def package_that(tmp_path: Path, name: str, does: str) -> dict[str, str]:
    """The environment of a process in which a package does only this."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(does)
    cache = {"STEPRULE_CACHE_DIR": str(tmp_path / "kernels")}
    return {**os.environ, **cache, "PYTHONPATH": str(tmp_path)}


def levels(findings: dict[str, Finding]) -> set[Level]:
    return {finding.level for finding in findings.values()}


# -- a sound machine ----------------------------------------------------------------------


def test_a_sound_machine_has_no_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for said in ("steprule", torch.__version__, "fused", "foreach", "checkpoint", "no problems"):
        assert said in text
    assert "\x1b" not in text


def test_json_has_every_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_broken"] is False
    names = {(x["section"], x["name"]) for x in report["findings"]}
    assert {("versions", "torch"), ("engines", "rows"), ("self-test", "compiler")} <= names
    assert all(
        {"section", "name", "value", "level", "advice"} == set(x) for x in report["findings"]
    )


def test_the_page_shows_what_it_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPRULE_CACHEDIR", "there")
    page = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")
    shown = re.search(r"```text\n(.*?)\n\n", page, re.DOTALL)
    assert shown is not None
    lines = shown[1].splitlines()
    names = [line[2:20].strip() for line in lines if line[1:2] == " "]
    findings = tuple(examine())
    sections = [line for line in lines if line[1:2] != " "]
    assert sections == [*dict.fromkeys(finding.section for finding in findings)]
    there = {finding.name for finding in findings}
    assert set(names) - there <= {"devices"}  # a machine with a GPU names it


def test_every_engine_is_tried() -> None:
    tried = found(engines_part.engines())
    assert [*tried] == [entry.name for entry in registry.entries()]
    here = {"fused", "foreach", "eager", "rows"}
    assert all(tried[name].value.startswith("on, right") for name in here)
    if not (torch.cuda.is_available() or torch.xpu.is_available()):
        assert tried["triton"] == Finding(
            "engines", "triton", "off: there is no cuda or xpu device here"
        )


def test_it_needs_no_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"typer": "typer", "not_a_module_at_all": "not-a-package"}
    monkeypatch.setattr(cli, "EXTRA", extra)
    monkeypatch.setattr(examination, "PARTS", (versions.versions,))
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert main(["list"]) == 2
    said = capsys.readouterr().err
    assert "pip install '.[cli]' in the checkout" in said
    assert "(not found: not-a-package); doctor and warm do without" in said
    assert main(["--json", "doctor"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steprule {steprule.__version__}\n"
    assert main(["--help"]) == 0
    assert "pip install '.[cli]' in the checkout" in capsys.readouterr().out


def test_warm_needs_no_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(cli, "EXTRA", {"not_a_module_at_all": "not-a-package"})
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    assert main(["warm", "sgd", "--options", "momentum=0.9"]) == 0
    assert "SGD" in capsys.readouterr().out
    assert main(["warm", "sdg"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["warm", "--dtypes", "int3", "sgd"]) == 2
    assert capsys.readouterr().err.startswith("steprule: ")


def test_it_changes_no_random_state_and_warns_of_nothing() -> None:
    before = torch.get_rng_state()
    tuple(examine())
    assert torch.equal(torch.get_rng_state(), before)


def test_text_can_be_printed_where_letters_are_few(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(
        examination, "PARTS", (lambda: iter([Finding("kernels", "folder", "/Größe/核")]),)
    )
    with open(1, "w", encoding="ascii", closefd=False) as narrow:
        monkeypatch.setattr(sys, "stdout", narrow)
        assert doctor() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["list"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "steprule_command", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert re.fullmatch(r"steprule: .*No space left on device\n", done.stderr)


def test_a_reader_may_leave() -> None:
    """`steprule doctor | head -1` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "steprule.doctor"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (READER_LEFT, "")


# -- broken machines ----------------------------------------------------------------------


def test_an_old_torch_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.4.1+cpu")
    monkeypatch.setattr(examination, "PARTS", (versions.versions,))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "! torch                   2.4.1+cpu" in text
    assert "steprule needs torch 2.5 or later: pip install --upgrade torch" in text


def test_a_package_that_is_missing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        versions,
        "requirements",
        lambda: [installed.Requirement("torch", "2.5"), installed.Requirement("no-such-package")],
    )
    findings = found(versions.versions())
    assert findings["torch"].level is Level.OK
    assert findings["no-such-package"].value == "not installed"
    assert findings["no-such-package"].level is Level.PROBLEM


def test_a_folder_that_was_never_installed_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", refuse)
    findings = found(versions.versions())
    assert findings["requirements"].level is Level.NOTE
    assert findings["extra cli"].value == "not known"
    assert "torch" in findings


def test_extras_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    real = installed.version_of
    monkeypatch.setattr(versions, "version_of", lambda name: None if name == "rich" else real(name))
    said = found(versions.versions())["extra cli"]
    assert said.value == (
        "not installed: rich missing or old (pip install '.[cli]' in the checkout)"
    )
    assert said.level is Level.OK


@pytest.mark.parametrize(
    ("version", "oldest", "is_met"),
    [
        ("2.5", "2.5.0", True),
        ("2.5.0+cu124", "2.5", True),
        ("2.13.0", "2.5", True),
        ("2.4.1", "2.5", False),
        ("2.10.0a0+git1f", "2.9", True),
        ("1.26.4", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, oldest: str, is_met: bool) -> None:
    assert installed.Requirement("torch", oldest).is_met_by(version) is is_met


@pytest.fixture
def _without_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing compiled before is there, and nothing can be compiled."""

    def refuse(*args: object, **kwargs: object) -> bytes:
        raise RuntimeError("LLVM ERROR: no such target")

    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "compile_kernels", refuse)
    kernel_cache._library.cache_clear()
    kernel_cache.clear_cached_lookups()
    yield
    kernel_cache._library.cache_clear()
    kernel_cache.clear_cached_lookups()


@pytest.mark.usefixtures("_without_compiler")
def test_a_compiler_that_fails_is_a_problem() -> None:
    said = found(self_test.self_test())
    assert said["compiler"].level is Level.PROBLEM
    assert "LLVM ERROR: no such target" in said["compiler"].value
    assert "reinstall llvmlite" in said["compiler"].advice
    assert said["checkpoint"].level is Level.OK  # on other engines
    tried = found(engines_part.engines())
    assert tried["fused"].level is Level.NOTE  # one cause, one remedy
    assert tried["fused"].advice.endswith("the cause: self-test, compiler")
    assert re.match(r"off: its kernel could not be compiled .*LLVM ERROR", tried["fused"].value)
    assert "(foreach runs instead)" in tried["fused"].value
    assert tried["foreach"].level is Level.OK


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_a_compiler_that_cannot_be_loaded_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    real = registry.importlib.import_module

    def refuse(name: str) -> object:
        if name == "steprule.engines.cpu.engine":
            raise kind("libllvmlite.so: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(registry.importlib, "import_module", refuse)
    registry.load.cache_clear()
    try:
        tried = found(engines_part.engines())
    finally:
        registry.load.cache_clear()
    assert tried["fused"].level is Level.PROBLEM
    assert "libllvmlite.so: cannot open shared object file" in tried["fused"].value
    assert tried["foreach"].level is Level.OK


@pytest.mark.parametrize("does", ["raise ImportError('broken')", "raise OSError('libllvm: none')"])
def test_a_broken_llvmlite_is_one_problem_and_every_step_is_right(
    tmp_path: Path, does: str
) -> None:
    env = package_that(tmp_path, "llvmlite", does)
    command = [sys.executable, "-m", "steprule.doctor", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    findings = json.loads(done.stdout)["findings"]
    (broken,) = (x for x in findings if x["level"] == "problem")
    assert broken["name"] == "compiler"
    assert "--force-reinstall llvmlite" in broken["advice"]
    by_name = {x["name"]: x for x in findings}
    assert by_name["rows"]["value"].startswith("on, right")
    for name in ("fused", "native loops"):
        assert by_name[name]["advice"].endswith("the cause: self-test, compiler")


def test_an_llvmlite_that_is_missing_is_a_problem_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "version_of", lambda name: None)
    monkeypatch.setitem(sys.modules, "steprule.engines.compiler", None)
    said = compiling.compiler()
    assert (said.level, said.advice) == (Level.NOTE, "llvmlite is not installed: see versions")
    assert compiling.is_failing()


# -- devices ------------------------------------------------------------------------------


@pytest.fixture
def _built_for_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A torch that finds nothing, on a machine without NVIDIA's driver."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for part in (torch.cuda, torch.xpu, torch.backends.mps):
        monkeypatch.setattr(part, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "none")


@pytest.mark.usefixtures("_built_for_cuda")
def test_a_device_that_torch_cannot_use_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", warn)
    said = found(hardware.hardware())["devices"]
    assert said.level is Level.NOTE
    assert said.advice == (
        "torch (built for CUDA 13.0) says: CUDA initialization: The NVIDIA driver is too old"
    )


@pytest.mark.usefixtures("_built_for_cuda")
@pytest.mark.parametrize(
    ("shown", "has_driver", "build", "says"),
    [
        (None, False, "13.0", ""),
        ("7", False, "13.0", "CUDA_VISIBLE_DEVICES=7, and torch (built for CUDA 13.0) sees no"),
        ("", True, "13.0", ""),
        ("-1", True, "13.0", ""),
        (None, True, "13.0", "torch (built for CUDA 13.0) sees no device of it"),
        (None, True, None, "this torch is built for CPUs alone: install the one for CUDA"),
        (None, False, None, ""),
    ],
)
def test_a_device_that_is_not_seen_is_noted_where_one_is_likely(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shown: str | None,
    has_driver: bool,
    build: str | None,
    says: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", build)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    if has_driver:
        monkeypatch.setattr(hardware, "DRIVER", tmp_path)
    said = found(hardware.hardware())["devices"]
    assert said.value == "none beside the CPU"
    assert said.level is (Level.NOTE if says else Level.OK)
    assert says in said.advice


def test_wrong_numbers_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    right = trials.by_formula()
    monkeypatch.setattr(trials, "by_formula", lambda: right + 1e-5)
    tried = found(engines_part.engines())
    assert tried["fused"].value == "wrong: 8 steps of Adam differ from the formula by 1.0e-05"
    assert "engine='eager'" in tried["fused"].advice
    assert "engine='foreach'" in tried["eager"].advice
    monkeypatch.setattr(trials, "by_formula", lambda: right * float("nan"))
    assert found(engines_part.engines())["fused"].level is Level.PROBLEM


def test_an_engine_that_raises_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError("of all things\nand more")

    monkeypatch.setattr(engines_part, "trial_of", refuse)
    assert found(engines_part.engines())["eager"].value == "fails: ValueError: of all things"


def test_native_loops_that_are_off_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(switch._reasons, "environment", "STEPRULE_NATIVE=0 is set")
    said = found(self_test.self_test())["native loops"]
    assert said.level is Level.NOTE
    assert said.value == "off: STEPRULE_NATIVE=0 is set"
    assert said.advice.endswith("unset STEPRULE_NATIVE")


def test_a_checkpoint_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(self_test, "save_training", refuse)
    said = found(self_test.self_test())["checkpoint"]
    assert said.level is Level.PROBLEM
    assert "No space left on device" in said.value


def test_a_resumed_run_that_differs_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "load_training", lambda *args, **kwargs: None)
    assert found(self_test.self_test())["checkpoint"].value == "wrong: a resumed run differs"


def test_a_part_that_fails_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hardware() -> Iterator[Finding]:
        yield Finding("machine", "processor", "a Z80")
        raise ZeroDivisionError("no cores")

    monkeypatch.setattr(examination, "PARTS", (hardware, versions.versions))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "a Z80" in text
    assert "! not looked at           ZeroDivisionError: no cores" in text
    assert torch.__version__ in text


# -- kernels on disk ----------------------------------------------------------------------


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STEPRULE_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)

    def refuse(cls: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(refuse))
    findings = found(examination._looked_at(cache_part.cache))
    assert findings["folder"].level is Level.NOTE
    assert findings["folder"].value == "none (Could not determine home directory.)"
    assert "set STEPRULE_CACHE_DIR" in findings["folder"].advice
    assert privacy.masked(findings["folder"]) == findings["folder"]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "steprule"
    folder.mkdir(mode=0o755)
    return folder


def test_kernels_are_counted_and_nothing_is_left(folder: Path) -> None:
    for name in ("a.kernel", "b.kernel", "b.py"):
        (folder / name).write_bytes(bytes(2**19))
        (folder / name).chmod(0o644)
    findings = found(cache_part.cache())
    assert findings["kernels"].value == "2, 1.0 MB"
    assert findings["writable"].value == "yes"
    assert levels(findings) == {Level.OK}
    assert sorted(file.name for file in folder.iterdir()) == ["a.kernel", "b.kernel", "b.py"]


@pytest.mark.parametrize("kernels", [0, 1])
def test_a_folder_that_cannot_be_written_to_is_noted(
    monkeypatch: pytest.MonkeyPatch, folder: Path, kernels: int
) -> None:
    for i in range(kernels):
        (folder / f"{i}.kernel").touch(mode=0o644)

    def refuse(self: KernelFolder, name: str, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(KernelFolder, "write", refuse)
    findings = found(cache_part.cache())
    # As little use as one that is not trusted, if it has nothing and was asked for.
    assert findings["writable"].level is (Level.NOTE if kernels else Level.PROBLEM)
    assert findings["writable"].value == "no: Read-only file system"
    advice = "what is there is used" if kernels else "set STEPRULE_CACHE_DIR to another folder"
    assert advice in findings["writable"].advice
    monkeypatch.delenv("STEPRULE_CACHE_DIR")
    monkeypatch.setattr(cache_part, "kernel_folder", lambda: KernelFolder(folder, is_named=False))
    assert found(cache_part.cache())["writable"].level is Level.NOTE


def test_a_folder_that_is_a_file_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(file))
    said = found(cache_part.cache())["writable"]
    assert said.level is Level.PROBLEM
    assert str(file) in said.value


def test_a_folder_that_all_can_write_to_is_a_problem(folder: Path) -> None:
    folder.chmod(0o777)
    findings = found(cache_part.cache())
    assert findings["trust"].level is Level.PROBLEM
    assert findings["trust"].value.startswith("not used: every user can write to it")
    assert "writable" not in findings


def test_files_that_others_can_write_to_are_noted(folder: Path) -> None:
    for name, mode in (("a.kernel", 0o644), ("b.kernel", 0o666)):
        (folder / name).touch()
        (folder / name).chmod(mode)
    findings = found(cache_part.cache())
    assert findings["not taken"].level is Level.NOTE
    assert "1 files" in findings["not taken"].value
    assert "b.kernel" in findings["not taken"].advice


# -- threads and environment --------------------------------------------------------------


def test_more_threads_than_cores_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    said = found(threads.threads())["torch"]
    assert said.level is Level.NOTE
    assert "torch.set_num_threads(1)" in said.advice


@pytest.mark.parametrize(
    ("content", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", float("inf")), ("", float("inf"))],
)
def test_a_containers_share_of_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, cores: float
) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(content)
    monkeypatch.setattr(machine, "CPU_QUOTA", file)
    assert machine.quota() == cores


@pytest.mark.parametrize(
    ("value", "says"),
    [("abc", "is no number of threads"), ("0", "is no number"), ("8", "more than the 4 cores")],
)
def test_a_count_of_threads_that_is_none_is_noted(
    monkeypatch: pytest.MonkeyPatch, value: str, says: str
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    said = found(threads.threads())["OMP_NUM_THREADS"]
    assert said.level is Level.NOTE
    assert says in said.advice


@pytest.mark.parametrize("value", ["1", "4", "4,1", " 2 "])
def test_a_count_of_threads_is_no_note(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert found(threads.threads())["OMP_NUM_THREADS"].level is Level.OK


def test_no_variable_is_wider_than_its_column() -> None:
    names = {*threads.VARIABLES, *threads.OWN_VARIABLES}
    starts = [
        line.index("is set")
        for line in lines_of(note("x", n, "is set") for n in names)
        if "is set" in line
    ]
    assert len({*starts}) == 1


def test_a_misspelt_variable_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPRULE_CACHEDIR", "/secret")
    said = found(threads.threads())["STEPRULE_CACHEDIR"]
    assert said.level is Level.NOTE
    assert said.value == "is set"
    assert "did you mean 'STEPRULE_CACHE_DIR'?" in said.advice


@pytest.mark.parametrize(
    ("value", "level"), [("disabled", Level.NOTE), ("0 ", Level.OK), ("On", Level.OK)]
)
def test_a_word_about_native_loops_that_is_not_known_is_noted(
    monkeypatch: pytest.MonkeyPatch, value: str, level: Level
) -> None:
    monkeypatch.setenv("STEPRULE_NATIVE", value)
    said = found(threads.threads())["STEPRULE_NATIVE"]
    assert (said.level, said.value) == (level, value)
    assert ("passed over" in said.advice) is (level is Level.NOTE)


@pytest.mark.parametrize(
    ("value", "level"),
    [("1", Level.NOTE), ("True", Level.NOTE), ("yes", Level.NOTE), ("0", Level.OK)],
)
def test_an_interpreting_triton_is_noted(
    monkeypatch: pytest.MonkeyPatch, value: str, level: Level
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert found(threads.threads())["TRITON_INTERPRET"].level is level


def test_all_variables_that_steprule_reads_are_known() -> None:
    text = "".join(file.read_text() for file in SOURCE.rglob("*.py"))
    read = set(re.findall(r"\bSTEPRULE_[A-Z_]+\b", text))
    assert read == set(threads.OWN_VARIABLES)


# -- what a report must not tell ----------------------------------------------------------


def test_no_secret_of_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_TOKEN", "AWS_SECRET_ACCESS_KEY", "OMP_SECRET", "STEPRULE_TOKEN"):
        monkeypatch.setenv(name, "hunter2")
    quick = (*versions.versions(), *hardware.hardware(), *threads.threads(), *cache_part.cache())
    report = Report(quick)
    assert "hunter2" not in f"{report} {report.as_json()}"


def test_home_and_user_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/home/al")))
    monkeypatch.setattr(privacy.getpass, "getuser", lambda: "al")
    for text, masked in {
        "/home/al/.cache/steprule": "~/.cache/steprule",
        "in /home/al": "in ~",
        "/home/alice/x": "/home/alice/x",
        "/scratch/al/kernels and /scratch/al": "/scratch/<user>/kernels and /scratch/<user>",
        "al": "al",
        "/data/al-2": "/data/al-2",
    }.items():
        assert privacy.masked_text(text) == masked


def test_a_home_that_is_the_root_is_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/")))

    def refuse() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(privacy.getpass, "getuser", refuse)
    assert privacy.masked_text("/opt/kernels") == "/opt/kernels"


# -- the script ---------------------------------------------------------------------------

ENTRY = [sys.executable, "-m", "steprule_command"]


def test_a_torch_that_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    env = package_that(tmp_path, "torch", "raise ImportError('libtorch_cpu.so: no such file')")
    done = subprocess.run([*ENTRY, "doctor"], env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert (
        "! import steprule         fails: ImportError: libtorch_cpu.so: no such file" in done.stdout
    )
    assert "torch>=2.5" in done.stdout
    assert "torch is installed and can't be imported: install it anew, by" in done.stdout
    as_json = subprocess.run([*ENTRY, "doctor", "--json"], env=env, capture_output=True, text=True)
    assert as_json.returncode == 1
    report = json.loads(as_json.stdout)
    assert report["is_broken"]
    assert {"section": "versions", "name": "numpy", "level": "ok", "advice": ""}.items() <= next(
        x for x in report["findings"] if x["name"] == "numpy"
    ).items()
    assert report["findings"][-1]["level"] == "problem"
    assert "libtorch_cpu.so" in report["findings"][-1]["value"]
    other = subprocess.run([*ENTRY, "list"], env=env, capture_output=True, text=True)
    assert other.returncode == 1
    assert "libtorch_cpu.so" in other.stderr


def test_the_package_whose_import_fails_is_named(tmp_path: Path) -> None:
    package_that(tmp_path, "numpy", "raise ImportError('multiarray failed to import')")
    env = package_that(tmp_path, "torch", "import numpy")
    done = subprocess.run([*ENTRY, "doctor"], env=env, capture_output=True, text=True)
    assert done.stdout.endswith(
        "numpy is installed and can't be imported: pip install --force-reinstall numpy\n"
    )


def test_an_interrupt_during_the_import_is_one_line(tmp_path: Path) -> None:
    # What runs in the background may have been started with SIGINT ignored.
    does = (
        "import _thread, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "_thread.interrupt_main()\n"
        "time.sleep(9)"
    )
    env = package_that(tmp_path, "torch", does)
    done = subprocess.run([*ENTRY, "compare"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "steprule: interrupted\n")
