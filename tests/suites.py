"""Runs other packages' own tests with torch's optimizers and with ours in their place.

See ``script/suites``. Each package's tests run twice, in processes of their own, the second time
with ours put in torch's place by a plugin (``tests/in_torchs_place.py``); every test whose outcome
differs is named. Both times each test draws the same random numbers (``tests/seeded.py``).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
#: What a test file says that has to do with optimizers.
ABOUT_OPTIMIZERS = re.compile(r"optim")


@dataclass(frozen=True)
class Suite:
    """Where a package's tests are, and which of them are run.

    Attributes:
        package: its name on the package index, whose installed version is taken.
        tests: the folder of its sources with the tests.
        files: patterns of files below that folder; of these, those that mention optimizers.
        options: for pytest.
        every: of the tests in these files, every n-th, where they are tens of thousands.
        version: of a package that this project's environment does not have.
        needs: what the tests take besides; pip fetches it, without what it depends on.
        with_package: its sources go on the path, not the installed package.
    """

    package: str
    tests: str
    files: tuple[str, ...] = ("**/test_*.py", "**/*_test.py")
    options: tuple[str, ...] = ()
    every: int = 1
    version: str | None = None
    needs: tuple[str, ...] = ()
    with_package: bool = False


SUITES = {
    suite.package: suite
    for suite in (
        Suite(
            "gpytorch", "test", ("examples/test_s*.py", "examples/test_m*.py", "optim/test_*.py")
        ),
        Suite(
            "botorch",
            "test",
            (
                "test_fit.py",
                "optim/test_core.py",
                "optim/test_fit.py",
                "optim/test_stopping.py",
                "optim/closures/test_*.py",
                "optim/utils/test_*.py",
                "generation/test_gen.py",
            ),
        ),
        Suite(
            "pyro-ppl",
            "tests",
            ("optim/test_*.py", "infer/test_svi.py", "params/test_*.py"),
        ),
        Suite(
            "skorch",
            "skorch/tests",
            (
                "callbacks/test_lr_scheduler.py",
                "test_setter.py",
                "test_regressor.py",
                "test_class*.py",
            ),
            needs=("flaky==3.8.1",),
        ),
        Suite(
            "pytorch-ignite",
            "tests",
            (
                "ignite/handlers/test_param_scheduler.py",
                "ignite/handlers/test_lr_finder.py",
                "ignite/handlers/test_checkpoint.py",
                "ignite/handlers/test_ema_handler.py",
                "ignite/handlers/test_state_param_scheduler.py",
                "ignite/handlers/test_handlers.py",
                "ignite/engine/test_create_supervised.py",
            ),
            ("-m", "not distributed"),
        ),
        Suite(
            "accelerate",
            "tests",
            (
                "test_optimizer.py",
                "test_scheduler.py",
                "test_grad_sync.py",
                "test_accelerator.py",
            ),
            needs=("parameterized==0.9.0",),
        ),
        Suite(
            "timm", "tests", ("test_optim.py", "test_scheduler.py"), ("-p", "bare_timm"), every=10
        ),
        Suite(
            "transformers",
            "tests",
            ("optimization/test_*.py",),
            needs=("parameterized==0.9.0",),
        ),
        Suite(
            "pytorch-optimizer",
            "tests",
            (
                "test_optimizers.py",
                "test_wrapper_optimizers.py",
                "test_lr_schedulers.py",
                "test_create_optimizer.py",
                "test_base.py",
            ),
            version="4.1.0",
            needs=("pytorch-optimizer==4.1.0",),
        ),
        Suite(
            "higher",
            "tests",
            ("test_optim.py",),
            needs=("parameterized==0.9.0",),
            with_package=True,
        ),
        Suite(
            "torchopt",
            "tests",
            ("test_optim.py", "test_schedule.py", "test_meta_optim.py"),
            every=20,
            version="0.7.3",
            needs=("torchopt==0.7.3", "optree==0.20.0", "graphviz==0.21"),
        ),
        Suite(
            "lightning",
            "tests/tests_pytorch",
            (
                "core/test_lightning_optimizer.py",
                "trainer/optimization/test_*.py",
                "loops/optimization/test_*.py",
                "tuner/test_lr_finder.py",
                "callbacks/test_lr_monitor.py",
                "callbacks/test_stochastic_weight_avg.py",
                "callbacks/test_weight_averaging.py",
            ),
        ),
    )
}


def sources(suite: Suite, into: Path) -> Path:
    """Have pip fetch the sdist of the version that is run, and return its folder."""
    version = suite.version or importlib.metadata.version(suite.package)
    if into.exists():  # kept from a run before
        return next(path for path in into.iterdir() if path.is_dir())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", suite.package, "--dest", str(into), f"{suite.package}=={version}"),
        ],
        check=True,
        # What numbers a version by the history of its repository finds none in an sdist.
        env={**os.environ, "SETUPTOOLS_SCM_PRETEND_VERSION": version},
    )
    (archive,) = into.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(into, filter="data")
    return next(path for path in into.iterdir() if path.is_dir())


def fetch_needs(suite: Suite, into: Path) -> None:
    """Have pip put what the tests take besides into a folder of its own."""
    if suite.needs and not into.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
                *("--disable-pip-version-check", "--target", str(into), *suite.needs),
            ],
            check=True,
        )


def chosen(folder: Path, suite: Suite) -> list[Path]:
    """Return the files of tests to run."""
    found = sorted({path for pattern in suite.files for path in folder.glob(pattern)})
    return [path for path in found if ABOUT_OPTIMIZERS.search(path.read_text(errors="replace"))]


def outcomes(
    files: list[Path], suite: Suite, root: Path, paths: list[Path], seed: int, ours: bool
) -> dict[str, str]:
    """Run the tests; return each one's outcome by its name.

    Raises:
        RuntimeError: pytest itself failed.
    """
    report = root / f"report-{'ours' if ours else 'torch'}.xml"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [ROOT / "src", *paths, HERE])),
        "STEPRULE_IN_TORCHS_PLACE": "1" if ours else "0",
        "STEPRULE_SUITES_SEED": str(seed),
        "STEPRULE_SUITES_EVERY": str(suite.every),
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}"),
        *("-c", os.devnull, "--rootdir", str(root), "-p", "no:cacheprovider"),
        *("-p", "in_torchs_place", "-p", "seeded", "-p", "thinned"),
        *suite.options,
        *map(str, files),
    ]
    log = report.with_suffix(".log")
    with log.open("w") as stream:
        code = subprocess.run(
            command, cwd=root, env=environment, stdout=stream, stderr=subprocess.STDOUT
        ).returncode
    if code not in (0, 1) or not report.exists():
        raise RuntimeError(f"pytest ended with {code}:\n{log.read_text()[-3000:]}")
    found: dict[str, str] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = [child.tag for child in case]
        bad = next((kind for kind in ("error", "failure", "skipped") if kind in kinds), "passed")
        found[_same_for_both(f"{case.get('classname')}::{case.get('name')}")] = bad
    return found


def _same_for_both(name: str) -> str:
    """Return a test's name without what its parameters' texts have of our modules, or of memory."""
    name = re.sub(r" at 0x[0-9a-f]+", "", name)
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name)


def compare(suite: Suite, source: Path | None, room: Path, seed: int) -> str:
    """Run a package's tests twice; return a row of the table, and print what differs."""
    found = source or sources(suite, room / f"{suite.package}-sdist")
    root = room / suite.package
    tests = root / suite.tests
    # Tests alone, without the sources beside them, which would be imported in the place of
    # what is installed.
    shutil.copytree(found / suite.tests, tests, dirs_exist_ok=True)
    parent = Path(suite.tests).parent
    for shared in ("conftest.py", "__init__.py"):
        if suite.tests.startswith("tests/") and (found / parent / shared).exists():
            shutil.copy(found / parent / shared, root / parent / shared)
    files = chosen(tests, suite)
    if not files:
        raise RuntimeError(f"no such tests in {found}: {', '.join(suite.files)}")
    needs = room / f"{suite.package}-needs"
    fetch_needs(suite, needs)
    paths = [root, root / parent, *([found] if suite.with_package else []), needs]
    theirs, ours = (outcomes(files, suite, root, paths, seed, is_ours) for is_ours in (False, True))
    for name in sorted(theirs.keys() | ours.keys()):
        before, after = theirs.get(name, "absent"), ours.get(name, "absent")
        if before != after:
            print(f"  {name}: {before} with torch's, {after} with ours")
    counts = [Counter(kinds.values()) for kinds in (theirs, ours)]
    failed = [count["failure"] + count["error"] for count in counts]
    cells = (
        f"{suite.package} {_version(suite)}",
        str(len(ours)),
        *(str(count["passed"]) for count in counts),
        *map(str, failed),
        str(counts[1]["skipped"]),
    )
    return f"| {' | '.join(cells)} |"


def _version(suite: Suite) -> str:
    try:
        return suite.version or importlib.metadata.version(suite.package)
    except importlib.metadata.PackageNotFoundError:
        return "(sources)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/suites", description=__doc__)
    parser.add_argument("packages", nargs="*", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--source", type=Path, help="a package's sources, instead of pip's sdist")
    parser.add_argument("--keep", type=Path, help="a folder to keep tests and reports in")
    parser.add_argument("--seed", type=int, default=0, help="other random numbers (default: 0)")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.packages if name not in SUITES]
    if unknown:
        parser.error(f"unknown package {unknown[0]!r}: must be of {', '.join(SUITES)}")
    if arguments.source is not None and len(arguments.packages) != 1:
        parser.error("--source is of one package: name it")
    source = arguments.source and arguments.source.resolve()
    rows = []
    for name in arguments.packages or SUITES:
        print(name, flush=True)
        try:
            with tempfile.TemporaryDirectory() as temporary:
                room = (arguments.keep or Path(temporary)).resolve()
                room.mkdir(parents=True, exist_ok=True)
                row = compare(SUITES[name], source, room, arguments.seed)
        except (RuntimeError, subprocess.CalledProcessError, OSError) as error:
            print(f"  not run: {error}")
        except importlib.metadata.PackageNotFoundError:
            print("  not run: it is not installed")
        else:
            print(row, flush=True)
            rows.append(row)
    print(
        "\n| package | tests | torch passed | ours passed | torch failed | ours failed | skipped |"
    )
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
