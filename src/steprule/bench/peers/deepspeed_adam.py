"""DeepSpeed's Adam for the CPU."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from steprule.bench.peers.peer import Peer
from steprule.bench.subjects import Subject


def _step_of(subject: Subject, params: list[torch.Tensor]) -> Callable[[], Any]:
    # It greets on stdout and stderr, and its build does so again.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        adam: Any = importlib.import_module("deepspeed.ops.adam")
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        optimizer = adam.DeepSpeedCPUAdam(
            params, weight_decay=1e-2 if decoupled(subject) else 0, adamw_mode=decoupled(subject)
        )
    return optimizer.step  # type: ignore[no-any-return]


def decoupled(subject: Subject) -> bool:
    """Return whether this is AdamW, which DeepSpeed has as a mode of Adam."""
    return subject.label == "adamw"


DEEPSPEED = Peer(
    name="deepspeed",
    packages=("deepspeed",),
    install="pip install ninja py-cpuinfo, then pip install --no-build-isolation deepspeed",
    comparable=(
        "DeepSpeed's DeepSpeedCPUAdam: the same tensors and options; it builds its C++ kernel once "
        "(minutes, not counted) and uses OpenMP's threads."
    ),
    takes=("adam", "adamw"),
    most_tensors=1_000_000,
    step_of=_step_of,
)
