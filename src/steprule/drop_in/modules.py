"""torch.optim's module paths: ``steprule.adam.Adam`` for ``torch.optim.adam.Adam``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer


def add_torchs_paths(package: ModuleType, optimizers: Mapping[str, type]) -> None:
    """Make importable from ``package`` what scripts import from within ``torch.optim``.

    That is a module for each optimizer, under the names that torch's file and ours have
    (``steprule._muon`` and ``steprule.muon``); torch's helpers for optimizers of one's own
    (``steprule.optimizer._use_grad_for_differentiable``); and torch's functions on optimizers.
    """
    for name, classes in _files_of(optimizers).items():
        if name not in vars(package):
            _add_module(package, name, classes)
    vars(sys.modules[f"{package.__name__}.optimizer"]).setdefault("__getattr__", _of_torchs_base)
    for name in torch.optim.__all__:
        value = getattr(torch.optim, name)
        if inspect.isfunction(value):
            vars(package).setdefault(name, value)


def _files_of(optimizers: Mapping[str, type]) -> dict[str, dict[str, type]]:
    """Return the optimizers by the names of the files that define them, here or in torch."""
    ours = {cls.__name__: cls for cls in optimizers.values()}
    files: dict[str, dict[str, type]] = {}
    for name, cls in ours.items():
        files.setdefault(cls.__module__.rpartition(".")[2], {})[name] = cls
    for path, module in list(sys.modules.items()):
        package, _, file = path.rpartition(".")
        if package == torch.optim.__name__:
            found = {name: cls for name, cls in ours.items() if name in vars(module)}
            if found:
                files[file] = {**files.get(file, {}), **found}
    return files


def _add_module(package: ModuleType, name: str, classes: Mapping[str, type]) -> None:
    module = ModuleType(f"{package.__name__}.{name}", f"``torch.optim.{name}``, as it is here.")
    vars(module).update(classes, __all__=[*classes])
    sys.modules[module.__name__] = module
    setattr(package, name, module)


def _of_torchs_base(name: str) -> Any:
    if name.startswith("__") or not hasattr(torch_optimizer, name):
        raise AttributeError(f"module 'steprule.optimizer' has no attribute {name!r}")
    return getattr(torch_optimizer, name)
