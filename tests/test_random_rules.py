"""Rules made at random: every engine, and the kernel's compiler, means the same by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import ENGINES
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule import ops

ARRAYS = st.sampled_from(["param", "grad", "m", "v"])
# torch does not subtract truth values from tensors: `first` is made a number.
SCALARS = st.sampled_from(["lr", "a", "step", "(1.0 * first)", "0.5", "2", "-3", "0.1"])
COMPARISONS = st.sampled_from(["<", "<=", ">", ">=", "!="])
# Steep or undefined places are kept away from: there engines may differ by more than rounding.
FORMS = (
    "({0} + {1})",
    "({0} - {1})",
    "({0} * {1})",
    "({0} / (abs({1}) + 0.5))",
    "(-(1.0 * {0}))",
    "sqrt(abs({0}) + 0.01)",
    "exp(minimum({0}, 2.0))",
    "log(abs({0}) + 1.0)",
    "maximum({0}, {1})",
    "minimum({0}, {1})",
    "lerp({0}, {1}, 0.3)",
    "(abs({0}) + 0.5) ** 2",
    "(abs({0}) + 0.5) ** -0.5",
    "(abs({0}) + 0.5) ** clip({1}, -2.0, 2.0)",
    "clip({0}, -1.0, {1})",
    "expm1(minimum({0}, 2.0))",
    "log1p(abs({0}))",
    "rsqrt(abs({0}) + 0.01)",
    "sigmoid({0})",
    "square({0})",
    "tanh({0})",
)


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    formed = st.builds(lambda form, x, y: form.format(x, y), st.sampled_from(FORMS), parts, parts)
    # Of two inputs: a rounding cannot turn a comparison of them round.
    condition = st.builds("{} {} {}".format, ARRAYS, COMPARISONS, ARRAYS)
    both = st.builds("({}) {} ({})".format, condition, st.sampled_from("&|"), condition)
    conditions = st.one_of(condition, both, st.builds("~({})".format, condition))
    chosen = st.builds("where({}, {}, {})".format, conditions, parts, parts)
    return st.one_of(formed, formed, chosen)


EXPRESSIONS = st.recursive(st.one_of(ARRAYS, SCALARS), _larger, max_leaves=12)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nobody will ask for these kernels again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPRULE_CACHE_DIR", str(tmp_path_factory.mktemp("kernels")))
        yield


def trained(cls: Any, engine: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    params = [torch.randn(size, dtype=torch.float64).requires_grad_() for size in (19, 3)]
    optimizer = cls(params, engine=engine)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {engine}
    return [*params, *(optimizer.state[param][slot] for param in params for slot in "mv")]


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
def test_engines_agree(param: str, m: str, v: str) -> None:
    text = (
        "def random_rule(param, grad, m, v, *, lr, a, step, first):\n"
        f"    param = 0.1 * param + minimum(maximum({param}, -9.0), 9.0)\n"
        f"    return param, 0.1 * m + {m}, 0.1 * v + {v}"
    )
    words = {name: getattr(ops, name) for name in ops.__all__}
    exec(text, words)
    cls = steprule.make_optimizer(steprule.rule(words["random_rule"]), lr=0.1, a=0.7)
    reference = trained(cls, ENGINES[0])
    for engine in ENGINES[1:]:
        for one, other in zip(trained(cls, engine), reference, strict=True):
            # Two steps of some dozens of roundings, each made ten times larger by exp at the most.
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11, equal_nan=True)
