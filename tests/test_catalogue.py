"""docs/optimizers.md is what the classes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from steprule.cli.catalogue import (
    formula_of,
    markdown,
    source_of,
    state_bytes_of,
    use_of,
    without_caution,
    without_decoupled_decay,
)
from steprule.cli.costs import step_cost_of
from steprule.rules import OPTIMIZERS

PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == markdown(OPTIMIZERS), (
        "run: python -m steprule.cli.catalogue > docs/optimizers.md"
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_says_where_it_comes_from_and_when_to_use_it(name: str) -> None:
    assert source_of(OPTIMIZERS[name])
    assert use_of(OPTIMIZERS[name])


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if c.rule])
def test_every_rule_gives_its_formula_and_its_weight(name: str) -> None:
    cost = step_cost_of(OPTIMIZERS[name])
    assert cost is None or cost.operations > 0
    assert "param = param" in formula_of(OPTIMIZERS[name])
    assert state_bytes_of(OPTIMIZERS[name])


def test_who_takes_caution_and_decoupled_decay_is_said_right() -> None:
    def refusing(**options: Any) -> list[str]:
        return [cls.__name__ for cls in OPTIMIZERS.values() if refuses(cls, options)]

    def refuses(cls: Any, options: dict[str, Any]) -> bool:
        try:
            cls([torch.ones(2, 2, requires_grad=True)], **options)
        except (TypeError, ValueError):
            return True
        return False

    assert without_caution(OPTIMIZERS) == refusing(cautious=True)
    decay = refusing(weight_decay=0.1, decoupled_weight_decay=True)
    # AdamW's is, for good: it only refuses to be told so.
    assert without_decoupled_decay(OPTIMIZERS) == [name for name in decay if name != "AdamW"]


def test_costs_are_counted_in_the_rule() -> None:
    """SGD: a product and a difference; param and grad read, param written. Adam: m and v too."""
    sgd, adam = step_cost_of(OPTIMIZERS["sgd"]), step_cost_of(OPTIMIZERS["adam"])
    assert sgd is not None
    assert adam is not None
    assert (sgd.operations, sgd.moved_bytes, sgd.passes) == (2, 12, 1)
    assert (adam.moved_bytes, adam.passes) == (28, 1)
    lamb = step_cost_of(OPTIMIZERS["lamb"])
    assert lamb is not None
    assert lamb.passes == 2
