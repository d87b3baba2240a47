"""torch's optimizers with their step compiled by torch.compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from steprule.bench.peers.peer import Peer
from steprule.bench.subjects import Subject


def _step_of(subject: Subject, params: list[torch.Tensor]) -> Callable[[], Any]:
    # It says on stderr which of torch's own decorators it passes over.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    # Every optimizer's step is the same code object, whose compiled forms are limited in number.
    torch._dynamo.reset()
    return torch.compile(subject.twin(params, **subject.options, foreach=True).step)


COMPILED = Peer(
    name="compile",
    packages=("torch",),
    install="pip install torch",
    comparable=(
        "torch.compile(optimizer.step) of torch's class with foreach=True, inductor on the CPU: "
        "the same tensors and threads; needs a C++ compiler; its compile time is not counted."
    ),
    takes=None,
    most_tensors=50,
    step_of=_step_of,
)
