"""Makes migrations/LIBRARY.json: what the code in docs/migrating/LIBRARY.md gives where it is from.

Run by hand, with the library's own Python environment, which needs nothing of ours::

    python -m venv other && other/bin/pip install jax optax==0.2.8 keras==3.15.1
    export JAX_ENABLE_X64=1 KERAS_BACKEND=jax
    other/bin/python tests/reference/make_migrations.py optax keras

and, where torch is, with timm==1.0.31 and bitsandbytes==0.50.2::

    python tests/reference/make_migrations.py timm bitsandbytes
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from importlib.metadata import version
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from migration_tables import (
    LETTERS,
    POINTS,
    RECORDED,
    Row,
    first_parameters,
    rows_of,
    trained,
)


def names(*modules: str) -> dict[str, Any]:
    """What the tables' code may use: the letters, and modules by their last name."""
    found = {name.split(".")[-1]: importlib.import_module(name) for name in modules}
    if "bitsandbytes" in found:
        found["bnb"] = found["bitsandbytes"]
    return {**LETTERS, "pi": pi, "sqrt": sqrt, **found}


def optax_run(row: Row) -> list[list[float]]:
    jnp, optax = importlib.import_module("jax.numpy"), importlib.import_module("optax")
    transformation = eval(row.theirs, names("optax"))
    params = [jnp.asarray(param) for param in first_parameters()]
    state = transformation.init(params)

    def step(grads: list[Any]) -> list[Any]:
        nonlocal params, state
        grads = [jnp.asarray(grad) for grad in grads]
        updates, state = transformation.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return [np.asarray(param) for param in params]

    def change_lr(lr: float) -> None:  # the state is the same for any
        nonlocal transformation
        transformation = eval(row.theirs, {**names("optax"), "lr": lr})

    return trained(step, change_lr if row.lr_changes else None)


def optax_schedule(row: Row) -> list[float]:
    schedule = eval(row.theirs, names("optax"))
    return [float(schedule(k)) for k in POINTS]


def keras_run(row: Row) -> list[list[float]]:
    keras = importlib.import_module("keras")
    keras.config.set_floatx("float64")
    optimizer = eval(row.theirs, names("keras"))
    variables = [keras.Variable(param, dtype="float64") for param in first_parameters()]

    def step(grads: list[Any]) -> list[Any]:
        tensors = [keras.ops.convert_to_tensor(grad, dtype="float64") for grad in grads]
        optimizer.apply(tensors, variables)
        return [keras.ops.convert_to_numpy(variable.value) for variable in variables]

    return trained(step, optimizer.learning_rate.assign if row.lr_changes else None)


def keras_schedule(row: Row) -> list[float]:
    keras = importlib.import_module("keras")
    keras.config.set_floatx("float64")
    schedule = eval(row.theirs, {**names("keras"), "schedules": keras.optimizers.schedules})
    return [float(schedule(k)) for k in POINTS]


def torch_run(row: Row, *modules: str, dtype: str = "float64") -> list[list[float]]:
    import torch

    params = [
        torch.tensor(param, dtype=getattr(torch, dtype), requires_grad=True)
        for param in first_parameters()
    ]
    optimizer = eval(row.theirs, {**names(*modules), "params": params})

    def step(grads: list[Any]) -> list[Any]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad, dtype=param.dtype)
        optimizer.step()
        return [param.detach().double().numpy() for param in params]

    def change_lr(lr: float) -> None:
        optimizer.param_groups[0]["lr"] = lr

    return trained(step, change_lr if row.lr_changes else None)


def timm_alone() -> None:
    """Make timm's optimizers importable without the models, which need torchvision."""
    if "timm" in sys.modules:
        return
    found = importlib.util.find_spec("timm")
    assert found is not None
    stand_in = types.ModuleType("timm")
    stand_in.__path__ = list(found.submodule_search_locations or [])
    sys.modules["timm"] = stand_in
    models = types.ModuleType("timm.models")
    models.group_parameters = None  # type: ignore[attr-defined]
    sys.modules["timm.models"] = models
    made = importlib.import_module("timm.optim")
    stand_in.create_optimizer_v2 = made.create_optimizer_v2  # type: ignore[attr-defined]


def timm_run(row: Row) -> list[list[float]]:
    timm_alone()
    return torch_run(row, "timm.optim", "timm")


def timm_schedule(row: Row) -> list[float]:
    import torch

    timm_alone()
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LETTERS["lr"])
    scheduler = eval(row.theirs, {**names("timm.scheduler"), "optimizer": optimizer})
    values = []
    for k in POINTS:
        values.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(k + 1)
    return values


def bitsandbytes_run(row: Row) -> list[list[float]]:
    return torch_run(row, "bitsandbytes", dtype="float32")


#: By library: packages whose versions are kept, a run, a schedule.
LIBRARIES: dict[str, tuple[tuple[str, ...], Callable[[Row], Any], Callable[[Row], Any] | None]] = {
    "optax": (("optax", "jax"), optax_run, optax_schedule),
    "keras": (("keras", "jax"), keras_run, keras_schedule),
    "timm": (("timm", "torch"), timm_run, timm_schedule),
    "bitsandbytes": (("bitsandbytes", "torch"), bitsandbytes_run, None),
}


def main() -> None:
    for library in sys.argv[1:]:
        packages, run, schedule = LIBRARIES[library]
        made: dict[str, Any] = {"made_with": {name: version(name) for name in packages}}
        for row in rows_of(library):
            function = schedule if row.of_schedules else run
            assert function is not None
            made[row.theirs] = function(row)
        path = RECORDED / f"{library}.json"
        path.write_text(json.dumps(made, indent=0) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(made) - 1} runs")


if __name__ == "__main__":
    main()
