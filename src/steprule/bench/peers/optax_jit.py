"""optax under jax.jit on the CPU."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from steprule.bench.peers.peer import Peer
from steprule.bench.subjects import Subject

# Our labels in optax's words, with torch's default options.
MAKERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "adadelta": ("adadelta", {"learning_rate": 1.0, "rho": 0.9, "eps": 1e-6}),
    "adagrad": (
        "adagrad",
        {"learning_rate": 1e-2, "initial_accumulator_value": 0.0, "eps": 1e-10},
    ),
    "adam": ("adam", {"learning_rate": 1e-3}),
    "adamax": ("adamax", {"learning_rate": 2e-3}),
    "adamw": ("adamw", {"learning_rate": 1e-3, "weight_decay": 1e-2}),
    "nadam": ("nadam", {"learning_rate": 2e-3}),
    "radam": ("radam", {"learning_rate": 1e-3}),
    "rmsprop": ("rmsprop", {"learning_rate": 1e-2, "decay": 0.99, "eps": 1e-8}),
    "rprop": ("rprop", {"learning_rate": 1e-2}),
    "sgd": ("sgd", {"learning_rate": 1e-3}),
    "sgd+momentum": ("sgd", {"learning_rate": 1e-3, "momentum": 0.9}),
}


@functools.cache
def _jitted(label: str) -> tuple[Any, Any]:
    """Return the transformation and its compiled step, compiled once for each list of shapes."""
    if torch.get_num_threads() == 1 and "jax" not in sys.modules:
        # Read when XLA starts; it has no setting for any other number.
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "")
            + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax: Any = importlib.import_module("jax")
    optax: Any = importlib.import_module("optax")
    name, options = MAKERS[label]
    transformation = getattr(optax, name)(**options)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return transformation, jax.jit(step, donate_argnums=(0, 1))


def _step_of(subject: Subject, params: list[torch.Tensor]) -> Callable[[], Any]:
    transformation, jitted = _jitted(subject.label)
    jax: Any = importlib.import_module("jax")
    values = [jax.numpy.array(param.detach().numpy()) for param in params]
    grads = [jax.numpy.array(param.grad.numpy()) for param in params if param.grad is not None]
    state = transformation.init(values)

    def step() -> None:
        nonlocal values, state
        values, state = jitted(values, state, grads)
        jax.block_until_ready((values, state))

    return step


OPTAX = Peer(
    name="optax",
    packages=("optax", "jax"),
    install="pip install optax jax",
    comparable=(
        "optax under jax.jit on the CPU: float32, the same shapes and options, buffers donated, "
        "waited for. Not the same: arrays are JAX's own and gradients are already among them, "
        "threads are XLA's (one a core), its compile time is not counted, and a few formulas "
        "differ in detail from torch's."
    ),
    takes=tuple(MAKERS),
    most_tensors=1000,
    step_of=_step_of,
)
