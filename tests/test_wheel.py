"""The wheel, installed alone in a new environment, is what the README says."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from distributions import Distributions, build, complaints
from new_environment import NewEnvironment, needed_by, new_environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Commands that take a second or two, as the README has them.
QUICK = ("list", "memory", "plot")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def requirements(built: Distributions) -> list[str]:
    with zipfile.ZipFile(built.wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


@pytest.fixture(scope="module")
def alone(
    built: Distributions, requirements: list[str], tmp_path_factory: pytest.TempPathFactory
) -> NewEnvironment:
    """The wheel without extras."""
    made = new_environment(tmp_path_factory.mktemp("alone"), needed_by(requirements))
    made.install(built.wheel)
    return made


@pytest.fixture(scope="module")
def with_cli(
    built: Distributions, requirements: list[str], tmp_path_factory: pytest.TempPathFactory
) -> NewEnvironment:
    """The wheel with the command line."""
    needed = needed_by(requirements, "cli")
    made = new_environment(tmp_path_factory.mktemp("with-cli"), needed)
    made.install(built.wheel, "cli")
    return made


def test_both_distributions_are_whole(built: Distributions) -> None:
    assert [*complaints(built)] == []


def test_every_name_is_imported_from_where_it_was_installed(alone: NewEnvironment) -> None:
    program = "import steprule; from steprule import *; Adam, warm; print(steprule.__file__)"
    said = alone.run("python", "-c", program).stdout
    assert Path(said.strip()).is_relative_to(alone.folder)


def test_the_readme_runs_without_extras(alone: NewEnvironment) -> None:
    """A block that needs an extra says which."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for i, block in enumerate(blocks):
        (alone.work / f"block_{i}.py").write_text(block, encoding="utf-8")
    driver = """
import pathlib
names = {"__name__": "readme"}
for i in range(len([*pathlib.Path().glob("block_*.py")])):
    file = pathlib.Path(f"block_{i}.py")
    try:
        exec(compile(file.read_text(encoding="utf-8"), str(file.resolve()), "exec"), names)
    except ImportError as error:
        if "pip install" not in str(error) or ".[" not in str(error):
            raise
        print("needs an extra:", error)
print("all", i + 1)
"""
    done = alone.run("python", "-W", "error", "-c", driver)
    assert f"all {len(blocks)}" in done.stdout.splitlines(), done.stdout


def test_what_needs_an_extra_names_it(alone: NewEnvironment) -> None:
    call = "steprule.plot_schedule(steprule.schedules.cosine(1.0, 0.0, steps=9), 9)"
    program = f"import steprule\ntry: {call}\nexcept ImportError as error: print(error)"
    said = alone.run("python", "-c", program).stdout
    assert re.search(r"pip install '\.\[cli\]'", said)


@pytest.mark.parametrize("command", ["list", ""])
def test_commands_say_that_they_need_the_extra(alone: NewEnvironment, command: str) -> None:
    done = alone.run("steprule", *command.split(), expects=2)
    assert done.stdout == ""
    assert re.fullmatch(r"steprule: .*pip install '\.\[cli\]'.*\n", done.stderr)


def test_doctor_needs_no_extra(alone: NewEnvironment) -> None:
    report = json.loads(alone.run("steprule", "doctor", "--json").stdout)
    values = {finding["name"]: finding["value"] for finding in report["findings"]}
    assert "pip install '.[cli]' in the checkout" in values["extra cli"]
    assert values["fused"].startswith("on, right")
    assert not report["is_broken"]


def test_warm_and_the_version_need_no_extra(alone: NewEnvironment) -> None:
    """An image that trains has kernels made by it, and no command line otherwise."""
    said = alone.run("steprule", "warm", "sgd", "--options", "momentum=0.9").stdout
    assert re.search(r"^compiled .*SGD", said, re.MULTILINE)
    assert re.fullmatch(r"steprule \S+\n", alone.run("steprule", "--version").stdout)
    assert "pip install '.[cli]'" in alone.run("steprule", "--help").stdout
    assert re.fullmatch(
        r"steprule \S+\n", alone.run("python", "-m", "steprule", "--version").stdout
    )


def readme_commands() -> list[str]:
    blocks = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(steprule [^`\n]*)`", README)
    lines += ["steprule list", 'steprule plot "cosine(0.1, 0, steps=90).warmup(5)" --text']
    quick = rf"steprule (?:{'|'.join(QUICK)})\b"
    return sorted({line.partition(" #")[0].strip() for line in lines if re.match(quick, line)})


@pytest.mark.parametrize("command", readme_commands())
def test_commands_of_the_readme_run(with_cli: NewEnvironment, command: str) -> None:
    assert with_cli.run(*shlex.split(command)).stdout


def test_kernels_are_compiled_ahead(with_cli: NewEnvironment) -> None:
    said = with_cli.run("steprule", "warm", "sgd", "--options", "momentum=0.9").stdout
    assert re.search(r"^compiled .*SGD", said, re.MULTILINE)


def test_a_comparison_writes_its_report(with_cli: NewEnvironment) -> None:
    """Its templates are in the wheel."""
    command = "steprule compare --optimizers sgd,adam --epochs 1 --report mine"
    assert "adam" in with_cli.run(*command.split()).stdout
    assert "<html" in (with_cli.work / "mine" / "report.html").read_text(encoding="utf-8")
    template = with_cli.run("steprule", "compare", "--template").stdout
    compile(template, "my_problem.py", "exec")


def test_doctor_finds_the_extra(with_cli: NewEnvironment) -> None:
    assert re.search(r"extra cli +installed", with_cli.run("steprule", "doctor").stdout)
