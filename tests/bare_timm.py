"""timm's schedulers and optimizers without torchvision: its packages' ``__init__`` is left out.

timm's package imports all its models, and these torchvision. Nothing else of its code is replaced.
As a pytest plugin (``-p bare_timm``) it does so for a whole run, if torchvision is not there.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The packages, and what others take from them: names by the modules that have them.
BARE = {
    "timm": {},
    "timm.layers": {"use_reentrant_ckpt": "config"},
    "timm.models": {"group_parameters": "_manipulate"},
}


def _forget_timm() -> dict[str, Any]:
    return {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == "timm"}


def put_bare_packages() -> None:
    """Let ``import timm.optim`` find bare packages."""
    found = importlib.util.find_spec("timm")
    assert found is not None
    (root,) = found.submodule_search_locations or []
    _forget_timm()
    for path, names in BARE.items():
        package = types.ModuleType(path)
        package.__path__ = [str(Path(root, *path.split(".")[1:]))]
        sys.modules[path] = package
        for name, module in names.items():
            setattr(package, name, getattr(importlib.import_module(f"{path}.{module}"), name))


@contextmanager
def found_bare() -> Iterator[None]:
    """Bare packages for a while; afterwards timm is imported or not, as it was before."""
    before = _forget_timm()
    try:
        put_bare_packages()
        yield
    finally:
        _forget_timm()
        sys.modules.update(before)


def timms(name: str) -> Any:
    """A module of timm."""
    with found_bare():
        return importlib.import_module(f"timm.{name}")


def pytest_configure() -> None:
    if importlib.util.find_spec("torchvision") is None:
        put_bare_packages()
