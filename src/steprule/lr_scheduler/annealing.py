"""Which way to anneal, read from the function that torch used to save instead of its name."""

from __future__ import annotations

import math
from typing import Any


def strategy_of(function: Any, *ends: float) -> str:
    """Return "cos" or "linear", whichever `function` computes.

    Args:
        function: `anneal_func` of a saved state.
        ends: what it is given before the share of the way.

    Raises:
        ValueError: it is neither.
    """
    quarter = function(*ends, 0.25)
    for name, expected in (("linear", 0.25), ("cos", (1 - math.cos(math.pi / 4)) / 2)):
        if math.isclose(quarter, expected, rel_tol=1e-6):
            return name
    raise ValueError(
        f"anneal_func in the state must be torch's for 'cos' or 'linear', got {function!r}: take "
        "it out of the state to go on with the anneal_strategy this scheduler was built with"
    )
