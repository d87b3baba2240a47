"""Problems of the user's own, by the name of the function that makes them."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steprule.problems.problem import Problem, ProblemError

Maker = Callable[[int], Problem]
DEFAULT_NAME = "make_problem"


def load_problem(source: str, seed: int = 0) -> Problem:
    """Return the problem that a function of the user's makes.

    Args:
        source: see `maker_of`.
        seed: handed to the function, and of the random numbers that it draws.

    Raises:
        ProblemError: there is no such function, it failed, or it returned something else.
    """
    return maker_of(source)(seed)


def maker_of(source: str) -> Maker:
    """Return what makes a problem for a seed.

    Args:
        source: ``my_module:make_problem``, or a file, ``path/to/file.py:make_problem``; without a
            colon the function is `make_problem`. Modules are looked for in the current folder
            first, as by ``python -m``. The function takes a seed (as the parameter `seed`, or the
            one that has no default) or nothing, and returns a
            :class:`Problem` or a tuple of its arguments: model, loss, data and, if there is one,
            evaluate. torch's, NumPy's and Python's own random numbers are seeded before it is
            called, and put back after.

    Raises:
        ProblemError: there is no such file, module or function; the message says which.
    """
    module, name = _function_of(source)
    function = getattr(module, name, None)
    if function is None:
        there = [
            n
            for n, f in vars(module).items()
            if inspect.isfunction(f) and f.__module__ == module.__name__ and not n.startswith("_")
        ]
        raise ProblemError(
            f"{source}: no function {name!r} there; it has {', '.join(there) or 'none'}"
        )
    if not callable(function):
        raise ProblemError(f"{source}: {name} is no function but {type(function).__name__}")
    call = _call_with_seed(source, function)

    def make(seed: int) -> Problem:
        with seeded(seed):
            try:
                return _as_problem(call(seed), source)
            except ProblemError as error:
                raise ProblemError(f"{source}: {error}") from error
            except Exception as error:
                raise ProblemError(f"{source}: {_what_failed(error, module)}") from error

    return make


def seed_all(seed: int) -> None:
    """Seed torch's, NumPy's and Python's own random numbers."""
    torch.manual_seed(seed % 2**64)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # users' code draws from it
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's own random numbers; put them back after the block."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # users' code
    # By default it warns where there are several cards.
    has_begun: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if has_begun else ()
    with torch.random.fork_rng(devices=devices):
        seed_all(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def _function_of(source: str) -> tuple[Any, str]:
    """Return the module and the function's name."""
    written, colon, name = source.rpartition(":")
    if not colon or name.endswith(".py") or "/" in name or "\\" in name:
        written, name = source, DEFAULT_NAME
    if not written or not name.isidentifier():
        raise ProblemError(
            f"{source!r} names no function; expected my_module:{DEFAULT_NAME} or "
            f"path/to/file.py:{DEFAULT_NAME}"
        )
    is_file = written.endswith(".py") or "/" in written
    return (_from_file if is_file else _from_name)(written, source), name


def _from_file(written: str, source: str) -> Any:
    path = Path(written)
    if not path.is_file():
        raise ProblemError(f"{source}: no file {written}")
    # Workers of a DataLoader look classes up by the module's name; but a file called random.py
    # must not take the place of what others import.
    name = path.stem if path.stem not in sys.modules else f"steprule_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{source}: {written} is no Python file")
    module = importlib.util.module_from_spec(spec)
    _look_first_in(path.parent)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise ProblemError(f"{source}: {_what_failed(error, module)}") from error
    return module


def _from_name(written: str, source: str) -> Any:
    _look_first_in(Path.cwd())
    try:
        return importlib.import_module(written)
    except ModuleNotFoundError as error:
        if error.name != written.partition(".")[0]:
            raise ProblemError(f"{source}: {type(error).__name__}: {error}") from error
        raise ProblemError(
            f"{source}: no module {written!r} in {Path.cwd()} or among what is installed"
        ) from error
    except Exception as error:
        raise ProblemError(f"{source}: {type(error).__name__}: {error}") from error


def _look_first_in(folder: Path) -> None:
    """Look for modules in `folder` first, and go on: functions import when they are called, too."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def _call_with_seed(source: str, function: Any) -> Callable[[int], Any]:
    """Return what calls `function` with a seed: its parameter `seed`, or the one that it needs."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a class in C, say
        return lambda _: function()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    needed = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    named = [p for p in parameters if p.name == "seed" and p.kind not in variable]
    taken = (named or needed)[:1]
    if any(p not in taken for p in needed) or any(
        p.name != "seed" and p.kind not in positional for p in taken
    ):
        names = ", ".join(p.name for p in needed)
        raise ProblemError(f"{source}: must take a seed or nothing, but it needs {names}")
    if not taken:
        return lambda _: function()
    if taken[0].name == "seed" and taken[0].kind is not inspect.Parameter.POSITIONAL_ONLY:
        return lambda seed: function(seed=seed)
    return lambda seed: function(seed)


def _what_failed(error: Exception, module: Any) -> str:
    """Return an error of the user's code in a line, with the last place in it that was reached."""
    own = Path(getattr(module, "__file__", None) or "").parent
    places = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).parent == own
    ]
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{where}"


def _as_problem(made: Any, source: str) -> Problem:
    is_parts = isinstance(made, tuple) and len(made) in (3, 4)
    problem: Problem = Problem(*made) if is_parts else made
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"expected a Problem or a tuple (model, loss, data), got {type(made).__name__}"
        )
    return problem if problem.name else dataclasses.replace(problem, name=source)
