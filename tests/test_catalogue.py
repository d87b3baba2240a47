"""docs/optimizers.md is what the classes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from steprule.cli.catalogue import formula_of, markdown, source_of, state_bytes_of
from steprule.rules import OPTIMIZERS

PAGE = Path(__file__).parents[1] / "docs" / "optimizers.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == markdown(OPTIMIZERS), (
        "run: python -m steprule.cli.catalogue > docs/optimizers.md"
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_says_where_it_comes_from(name: str) -> None:
    assert source_of(OPTIMIZERS[name])


@pytest.mark.parametrize("name", [n for n, c in OPTIMIZERS.items() if c.rule])
def test_every_rule_gives_its_formula_and_its_weight(name: str) -> None:
    assert "param = param" in formula_of(OPTIMIZERS[name])
    assert state_bytes_of(OPTIMIZERS[name])
