"""What a notebook shows of a value that stands last in a cell."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import steprule
from steprule.schedules import cosine

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_schedule_is_drawn_without_pyplot() -> None:
    figure = cosine(0.1, 0, steps=9).plot(10)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG)  # type: ignore[attr-defined]


def test_a_range_test_is_drawn_without_pyplot() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = steprule.SGD(model.parameters(), lr=0.1)
    batch = (torch.ones(4, 2), torch.ones(4, 1))
    found = steprule.lr_range_test(model, optimizer, torch.nn.MSELoss(), [batch], steps=20)
    assert found.plot()._repr_png_().startswith(PNG)  # type: ignore[attr-defined]


def test_groups_are_a_table_and_not_their_weights() -> None:
    groups = steprule.param_groups(torch.nn.Linear(2, 1), lr=0.1)
    shown: list[str] = []
    groups._repr_pretty_(SimpleNamespace(text=shown.append), cycle=False)
    assert shown == [str(groups)]


def test_ipython_uses_them() -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    display = formatters.DisplayFormatter()
    groups = steprule.param_groups(torch.nn.Linear(2, 1), lr=0.1)
    assert display.format(groups)[0]["text/plain"] == str(groups)
    assert display.format(cosine(0.1, 0, steps=9).plot(10))[0]["image/png"].startswith(PNG)
