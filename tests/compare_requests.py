"""What `steprule compare` is asked in tests: small, on one engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steprule.cli.compare import Request


def request(**changes: Any) -> Request:
    """Two optimizers for six steps, but for what is changed."""
    values: dict[str, Any] = {
        "optimizers": "sgd,adam",
        "lr": (),
        "epochs": None,
        "batch_size": 8,
        "seed": 0,
        "threads": 1,
        "engine": "eager",
        "data": None,
        "report": Path("report"),
        "steps": 6,
    }
    return Request(**(values | changes))
