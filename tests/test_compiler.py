"""The kernels' compiler: what it makes does what Python does with the same text, bit for bit."""

from __future__ import annotations

import ctypes
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Case, elementwise_optimizers, flag_cases, gradients, has_reductions
from hypothesis import given
from hypothesis import strategies as st
from kernels_in_python import functions_of

from steprule.engines import compiler
from steprule.engines.compiler.lowering import LanguageError
from steprule.engines.cpu import runner
from steprule.engines.kernel_cache.cache import Library
from steprule.engines.native.whole_step import NativeStep

NAMES = elementwise_optimizers()
FLAGS = list(chain.from_iterable(flag_cases(name) for name in NAMES))


def compiled(source: str, *names: str, reorders_sums: bool = False) -> list[Any]:
    code = compiler.compile_kernels(source, names, reorders_sums=reorders_sums)
    arity = source.split(")")[0].count(",") + 1
    return Library(code, names, arity, keeps_gil=False).functions


class InPython:
    """A library whose functions are run by Python; native code cannot call them."""

    def __init__(self, source: str, names: tuple[str, ...], **_: Any) -> None:
        self.functions = functions_of(source, names)


# Few, for Python takes microseconds where a kernel takes nanoseconds; some fill no vector.
SIZES = (67, 1, 32)


def trained(case: Case, dtype: torch.dtype, sizes: tuple[int, ...] = SIZES) -> list[torch.Tensor]:
    """Parameters and state after some steps by the fused engine."""
    torch.manual_seed(0)
    params = [torch.randn(size).to(dtype).requires_grad_() for size in sizes]
    optimizer = case.ours(params, engine="fused", **case.options)
    for _ in gradients(params, 4):
        with np.errstate(all="ignore"):
            optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {"fused"}
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    return [*params, *state]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *((Case(n, {}), d) for n in NAMES for d in (torch.float32, torch.bfloat16, torch.float16)),
        *((case, torch.float64) for case in FLAGS),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_kernels_do_what_their_text_says(
    case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(case, dtype)
    monkeypatch.setattr(NativeStep, "takes", lambda _: False)
    monkeypatch.setattr(runner, "library_for", lambda s, n, **_: InPython(s, n))
    # Sums of reductions may be reordered when compiled: a rounding of float64 for each of 67. What
    # they are of may be contracted there: half a rounding of float32 in the sum, and so, in what is
    # multiplied by it, one or the next float32 number.
    bounds = {torch.float64: 1e-13, torch.float32: 2.0**-22}
    bound = bounds.get(dtype, 0.0) if has_reductions(case.name) else 0.0
    for one, other in zip(made, trained(case, dtype), strict=True):
        torch.testing.assert_close(one, other, rtol=bound, atol=bound, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "dtype", "state_format", "rounding"),
    [
        ("Adam", torch.float32, "int8", "nearest"),
        ("Adam", torch.bfloat16, "int4", "split24"),
        ("Adam", torch.bfloat16, "bfloat16", "split"),
        ("SGD", torch.bfloat16, "int8", "kahan"),
        ("LAMB", torch.float16, "int4", "stochastic"),
        ("NAdam", torch.float64, "int8", "nearest"),
    ],
)
def test_kernels_of_formats_do_what_their_text_says(
    name: str,
    dtype: torch.dtype,
    state_format: str,
    rounding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: dict[str, Any] = {
        "state_format": state_format,
        "param_rounding": rounding,
        "state_format_min_size": 0,
        **({"momentum": 0.9} if name == "SGD" else {}),
    }
    case, sizes = Case(name, options), (259, 7)  # whole blocks, and an odd rest
    made = trained(case, dtype, sizes)
    monkeypatch.setattr(NativeStep, "takes", lambda _: False)
    monkeypatch.setattr(runner, "library_for", lambda s, n, **_: InPython(s, n))
    for one, other in zip(made, trained(case, dtype, sizes), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


PROGRAMS = {
    "loops": """\
def f(a, b, c):
    total = 0
    for i in range(a):
        if i == b:
            continue
        if total > 1000:
            break
        total += i * c
    for i in range(b, -3, -2):
        total = 3 * total - i
    for i in range(2, a, 3):
        i = i + c
        total ^= i
    return total
""",
    "conditions": """\
def f(a, b, c):
    if a < 0 or b > c:
        return -1
    elif not a >= 3 and b != c:
        return a - 1
    else:
        a = min(a, b)
    if a & 1:
        a = -a
    while a > -20 and not (a == b or a == c):
        a -= 3
    return (a << 2 | 1) >> 1 if b <= c else a & -4
""",
    "calls": """\
def smaller(a, b, _):
    return a < b

def leave(a, b):
    if a == b:
        return
    b = b + 1

def f(a, b, c):
    leave(a, b)
    found = 0
    if smaller(a, b, 0) and smaller(b, c, 1):
        found = 1
    return found
""",
    "floats": """\
def f(a, b, c):
    x = float64(a) / 7.0
    y = float32(x) * float32(0.1) - float32(b)
    x = -x + float64(y) ** 2.0 + abs(float64(c)) + sqrt(abs(x))
    x = (x if (x > 3.0) | (x != x) else 3.0)
    if y:
        return int64(x * 1000.0)
    return -1
""",
}
PROGRAMS["words of 32 bits"] = """\
def f(a, b, c):
    room = scratch(512)
    hashed = int32(a) * int32(-1640531527) + int32(b)
    hashed = (hashed ^ lshr(hashed, int32(15))) * int32(-2073254261)
    for i in independent(96):
        x = float_of(bits_of(float32(int32(i)) + float32(0.1)) & int32(-16))
        store_float32(room, i, (x if int32(i) < int32(50) else float_of(bits_of(x) << int32(1))))
    most = int32(0)
    for i in independent(96):
        most = largest(most, bits_of(load_float32(room, i)) ^ (hashed >> int32(9)))
    store_uint8(room, 5, hashed)
    store_int16(room, 100, lshr(hashed, int32(3)))
    return int64(most) + int64(load_uint8(room, 5)) + int64(load_int16(room, 100)) + int64(hashed)
"""
small = st.integers(-40, 40)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_what_python_does(name: str) -> None:
    (native,) = compiled(PROGRAMS[name], "f")
    (python,) = functions_of(PROGRAMS[name], ("f",))

    @given(small, small, small)
    def agree(a: int, b: int, c: int) -> None:
        with np.errstate(over="ignore"):  # integers wrap
            assert native(a, b, c) == python(a, b, c)

    agree()


def test_what_comes_after_and_or_is_only_looked_at_where_it_matters() -> None:
    (read,) = compiled(
        """\
def f(a, _b, _c):
    if a == 0 or load_int64(a, 0) < 0:
        return 0
    return 1
""",
        "f",
    )
    word = ctypes.c_int64(5)
    assert [read(0, 0, 0), read(ctypes.addressof(word), 0, 0)] == [0, 1]


def test_numbers_that_are_no_numbers() -> None:
    """Comparisons as Python's; integers that wrap, divisions by zero that are not errors."""
    (f,) = compiled(
        """\
def f(out, _b, _c):
    x = nan
    found = 0
    if x == x or x < 1.0 or x >= 1.0:
        found = 1
    if not x != x:
        found += 2
    store_float64(out, 0, 1.0 / 0.0)
    store_float64(out, 1, neg_inf)
    return found + (9223372036854775807 + 1 >> 62) * 4
""",
        "f",
    )
    out = (ctypes.c_double * 2)()
    assert f(ctypes.addressof(out), 0, 0) == -8
    assert list(out) == [float("inf"), float("-inf")]


def test_independent_loops_need_no_checks_to_be_vectors() -> None:
    """What LLVM makes of a loop without them has one store of a vector, and no other branch."""
    text = """\
def f(a, b, c):
    for i in LOOP(4096):
        store_float32(c, i, load_float32(a, i) * load_float32(b, i))
    return 0
"""
    sizes = [
        len(compiler.compile_kernels(text.replace("LOOP", loop), ("f",), reorders_sums=False))
        for loop in ("independent", "range")
    ]
    assert sizes[0] < sizes[1]
    (multiply,) = compiled(text.replace("LOOP", "independent"), "f")
    a, b, c = torch.randn(4096), torch.randn(4096), torch.zeros(4096)
    multiply(a.data_ptr(), b.data_ptr(), c.data_ptr())
    torch.testing.assert_close(c, a * b, rtol=0, atol=0)


def test_sums_are_reordered_only_where_that_was_asked_for() -> None:
    source = """\
def f(x, count, out):
    total = float32(0.0)
    for i in range(count):
        total += load_float32(x, i)
    store_float32(out, 0, total)
    return 0
"""
    torch.manual_seed(0)
    x, out = torch.randn(1003), torch.zeros(1)
    found = []
    for reorders_sums in (False, True):
        (f,) = compiled(source, "f", reorders_sums=reorders_sums)
        f(x.data_ptr(), 1003, out.data_ptr())
        found.append(out.item())
    in_order = np.float32(0)
    for value in x.numpy():
        in_order += value
    assert found[0] == in_order
    assert found[1] == pytest.approx(in_order, abs=1e-4)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("x = 1\n    x = 1.0", "line 3, `x = 1.0`: x is i64, and cannot become double"),
        ("x = a + 1.0", "`a + 1.0`: mixes i64 and double"),
        ("x = a / 2", "`a / 2`: there is no such operation on i64"),
        ("x = y", "`y`: y has no value here"),
        ("x = [a]", "`[a]`: is not in the language"),
        ("x = 'text'", "is not a number"),
        ("x = 0 < a < 3", "is not in the language"),
        ("x = load_int64(a)", "`load_int64(a)`: is given i64"),
        ("store_float32(a, 0, 1.0)", "is given i64, i64, double"),
        ("x = prefetch(a)", "has no value"),
        ("x = print(a)", "there is no print"),
        ("x = load_int64(a, 0) if a != 0 else 0", "computed whatever the condition"),
        ("x = a if a == 0 else 1.0", "is i64 or double"),
        ("for i in range(0, a, a):\n        a += 1", "the step must be a constant"),
        ("for i in a:\n        a += 1", "is not a range"),
        ("return 0\n    a = 1", "`a = 1`: is never reached"),
        ("if a:\n        return 1", "may end without a return"),
        ("if a:\n        return 1.0\n    return 0", "returns double, elsewhere i64"),
        ("a", "does nothing"),
        ("a.b = 1", "is not a name"),
        ("with a:\n        a = 1", "is not in the language"),
        ("for i in range(a):\n        a = i\n    else:\n        a = 1", "has an else"),
        ("while a:\n        a -= 1\n    else:\n        a = 1", "has an else"),
        ("break", "`break`: stands in no loop"),
        ("if a:\n        return\n    return 1", "returns nothing, elsewhere i64"),
        ("if a:\n        return 1\n    return", "must return an integer"),
        ("return a == 1", "must return an integer"),
        ("nan = 1.0", "nan is a constant"),
        ("x = abs(x=1.0)", "names its arguments"),
        ("x = 9223372036854775808", "beyond 64 bits"),
    ],
)
def test_refusals_say_where_and_why(body: str, text: str) -> None:
    end = "" if "return" in body else "    return 0\n"
    with pytest.raises(LanguageError) as caught:
        compiled(f"def f(a, _b, _c):\n    {body}\n{end}", "f")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("x = 1\n", "only functions"),
        ("def f(a):\n    return 1\n\ndef f(a):\n    return 2\n", "twice"),
        ("def f(a=1):\n    return 1\n", "plain arguments"),
        ("def f(*a):\n    return 1\n", "plain arguments"),
        ("@f\ndef f(a):\n    return 1\n", "plain arguments"),
    ],
)
def test_only_plain_functions_stand_in_a_source(source: str, text: str) -> None:
    with pytest.raises(LanguageError, match=text):
        compiled(source, "f")
