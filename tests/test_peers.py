"""The counts of optimizers in the comparison with other libraries are those that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steprule.rules import OPTIMIZERS

ROOT = Path(__file__).parent.parent
PEERS = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def stepped(cls: Any, **options: Any) -> dict[str, Any]:
    """The state of a matrix after a step with these options.

    Raises:
        TypeError, ValueError, RuntimeError: the class does not take them.
    """
    param = torch.ones(64, 80).requires_grad_()
    if options.get("differentiable"):
        param = param.clone()  # autograd goes through no change of a leaf
    made = cls([param], **options)
    param.grad = torch.ones_like(param)
    if cls.rule is not None and cls.rule.sparse == "only":
        param.grad = param.grad.to_sparse()
    made.step(lambda: torch.zeros(()))
    return dict(made.state[param])


def takes(cls: Any, **options: Any) -> bool:
    """Whether a step with these options is taken."""
    try:
        stepped(cls, **options)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


def is_quantised(cls: Any, state_format: str) -> bool:
    """Whether any state is in few bits, with all state that the rule may have."""
    options = {"momentum": 0.9} if cls.__name__ == "SGD" else {}
    if not takes(cls, state_format=state_format, **options):
        return False
    state = stepped(cls, state_format=state_format, **options)
    return any(value.dtype == torch.uint8 for value in state.values())


COUNTED: dict[str, Callable[[Any], bool]] = {
    "optimizers": lambda cls: True,
    "state in 8 bits": lambda cls: is_quantised(cls, "int8"),
    "state in 8 / 4 bits": lambda cls: is_quantised(cls, "int4"),
    "bfloat16 weights": lambda cls: takes(cls, param_rounding="stochastic"),
    "clipping and skipping": lambda cls: takes(cls, clip_grad_norm=1.0, on_nonfinite="skip"),
    "running average in the step": lambda cls: takes(cls, ema_decay=0.9),
    "caution": lambda cls: takes(cls, cautious=True),
    "`differentiable=True`": lambda cls: takes(cls, differentiable=True),
}


def numbers_of(row: str) -> list[set[int]]:
    """What each table with such a row gives for steprule, where that has numbers."""
    of_steprule = re.compile(rf"^\| {re.escape(row)}[^|]*\| ([^|]*) \|", re.MULTILINE)
    cells = [cell for page in (PEERS, README) for cell in of_steprule.findall(page)]
    return [set(map(int, re.findall(r"\d+", cell))) for cell in cells if re.search(r"\d", cell)]


@pytest.mark.parametrize("row", COUNTED)
def test_counts(row: str) -> None:
    counted = sum(map(COUNTED[row], OPTIMIZERS.values()))
    found = numbers_of(row)
    assert found
    assert all(counted in numbers for numbers in found), (counted, found)
