"""The native loops: switched off, audited, and given wrong offsets, which must be noticed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import steprule
from steprule.engines.native import address_guard, audit, loops, switch, tensor_layout
from steprule.engines.native.tensor_layout import TensorLayout

FIELDS = [field.name for field in dataclasses.fields(TensorLayout)]


@pytest.fixture(autouse=True)
def fresh_switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test finds out about this process is forgotten afterwards."""
    monkeypatch.setattr(switch, "_reasons", {})
    yield
    clear()


def clear() -> None:
    for cached in (loops._are_safe, loops._are_compiled, loops.process_words):
        cached.cache_clear()
    loops.native.cache_clear()  # type: ignore[attr-defined]


def pair() -> tuple[list[nn.Parameter], Any, list[nn.Parameter], Any]:
    params = [nn.Parameter(torch.full((6, 2), 1.0 + i)) for i in range(4)]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    return params, steprule.Adam(params, lr=0.1), twins, torch.optim.Adam(twins, lr=0.1)


def step(both: tuple[list[nn.Parameter], Any, list[nn.Parameter], Any], times: int = 4) -> None:
    params, ours, twins, theirs = both
    for _ in range(times):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(params, twins, rtol=1e-5, atol=1e-5)


def is_native(optimizer: Any) -> bool:
    plan = optimizer._plan
    return plan._whole.is_ready() or plan._runners[0]._native_guard is not None


def layout() -> TensorLayout:
    found = tensor_layout.tensor_layout()
    if found is None:
        pytest.skip("the loops do not work on this torch")
    return found


def test_the_layout_explains_tensors() -> None:
    param = nn.Parameter(torch.randn(3, 5)[:, 1:])
    for tensor in (param, param.detach(), torch.ones(()), torch.ones(2, 0)):
        assert audit.mismatch(layout(), tensor) is None
    param.grad = torch.ones_like(param)
    assert audit.mismatch(layout(), param) is None
    assert audit.mismatch_of_probes(layout()) is None


def test_the_setting_switches_them_off_and_on() -> None:
    layout()
    both = pair()
    step(both)
    assert is_native(both[1])
    steprule.set_native_loops(False)
    step(both)
    assert not both[1]._plan._whole.is_ready()
    assert "set_native_loops(False)" in str(both[1].explain())
    steprule.set_native_loops(True)
    step(both, 8)
    assert is_native(both[1])
    assert "native" not in str(both[1].explain())


@pytest.mark.parametrize("value", ["0", "no", " Off ", "1"])
def test_the_environment_switches_them_off(value: str) -> None:
    script = """
import torch, steprule
param = torch.nn.Parameter(torch.ones(3))
optimizer = steprule.Adam([param])
for _ in range(40):
    param.grad = torch.ones(3)
    optimizer.step()
print(optimizer._plan._whole.is_ready(), "STEPRULE_NATIVE" in str(optimizer.explain()))
"""
    layout()
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "", "STEPRULE_NATIVE": value, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = "True False" if value == "1" else "False True"
    assert done.stdout.strip() == expected


@pytest.mark.parametrize("by", [8, -8, 16])
@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_offset_is_noticed_before_anything_is_written(
    field: str, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(layout(), **{field: getattr(layout(), field) + by})
    for module in (loops, address_guard):
        monkeypatch.setattr(module, "tensor_layout", lambda: wrong)
    clear()
    both = pair()
    with pytest.warns(RuntimeWarning, match="native loops are off from now on") as caught:
        step(both)
    assert len(caught) == 1
    assert not is_native(both[1])
    assert "otherwise than Python does" in str(both[1].explain())
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        step(pair())


@pytest.mark.parametrize("field", FIELDS)
def test_an_offset_that_goes_wrong_later_is_noticed_by_an_audit(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = pair()
    step(both)
    assert is_native(both[1])
    wrong = dataclasses.replace(layout(), **{field: getattr(layout(), field) + 8})
    monkeypatch.setattr(address_guard, "tensor_layout", lambda: wrong)
    with pytest.warns(RuntimeWarning, match="native loops are off"):
        step(both, 12)
    assert not is_native(both[1])


def test_audits_grow_rare() -> None:
    assert [turn for turn in range(1, 70) if switch.is_audited(turn)] == [1, 2, 4, 8, 16, 32, 64]


def test_a_torch_that_is_not_understood_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "tensor_layout", lambda: None)
    clear()
    both = pair()
    step(both)
    assert not is_native(both[1])
    text = str(both[1].explain())
    assert f"torch {torch.__version__} keeps its tensors otherwise than is known" in text


class Evasive(torch.Tensor):
    """Says of itself what is true of a copy."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            plain = [a.as_subclass(torch.Tensor).clone() if type(a) is cls else a for a in args]
            return func(*plain, **(kwargs or {}))


def test_a_gradient_of_a_class_of_its_own_is_no_false_alarm() -> None:
    param = nn.Parameter(torch.zeros(3))
    optimizer = steprule.SGD([param], lr=1.0)
    for _ in range(20):
        param.grad = torch.ones(3).as_subclass(Evasive)  # type: ignore[assignment]
        optimizer.step()
    assert audit.mismatch(layout(), param) is None
    assert param.tolist() == [-20.0] * 3
