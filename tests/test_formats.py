"""Formats by themselves: what is stored is read again within bounds, the same by every engine.

- ``MiniFloat`` on adversarial blocks: zeros, an outlier, denormals, infinity, nan, block edges;
- rounding at random is right on average, and one 32-bit hash wherever it is computed;
- the kernel's text stores what the tensors' operations store, bit for bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from formats import made, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import steprule
from steprule.formats import Format
from steprule.formats.kahan import KahanFormat
from steprule.formats.mini_floats import BLOCK, MiniFloat
from steprule.formats.random_bits import array_key, mixed, param_key, random_words
from steprule.formats.split import SplitFormat
from steprule.formats.stochastic import StochasticFloat
from steprule.state.storing import column_shape

MINI = [
    MiniFloat(8, 3, True),
    MiniFloat(8, 3, False),
    MiniFloat(4, 0, True),
    MiniFloat(4, 0, False),
]
IDS = ["int8", "uint8", "int4", "uint4"]
CPU = torch.device("cpu")


def stored(storage: Format, value: Tensor, key: int | None = None) -> list[Tensor]:
    """The columns of an array with these numbers; rounded to nearest without a key."""
    columns = [
        torch.zeros(column_shape(column, value.shape), dtype=column.dtype)
        for column in storage.columns
    ]
    words = None if key is None else random_words(key, value.shape, CPU)
    storage.write(columns, value, words)
    return columns


def read(storage: Format, columns: list[Tensor], shape: torch.Size) -> Tensor:
    return storage.read(columns, torch.float32, shape)


numbers = st.one_of(
    st.just(0.0),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-1, 1, width=32),
)


@pytest.mark.parametrize("storage", MINI, ids=IDS)
@settings(max_examples=150)
@given(
    data=st.lists(numbers, min_size=1, max_size=9),
    size=st.sampled_from((1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1)),
    key=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
)
def test_elements_come_back_within_a_code_of_their_own(
    storage: MiniFloat, data: list[float], size: int, key: int | None
) -> None:
    value = torch.tensor(np.resize(np.array(data, dtype=np.float32), size))
    if not storage.is_signed:
        value = value.abs()
    found = read(storage, stored(storage, value, key), value.shape)
    for start in range(0, size, BLOCK):
        check_block(storage, value[start : start + BLOCK], found[start : start + BLOCK])


def check_block(storage: MiniFloat, value: Tensor, found: Tensor) -> None:
    finite = torch.isfinite(value)
    # Infinity and nan are kept for their element; 4 bits have one code for both.
    if storage.bits == 8:
        assert torch.equal(torch.isinf(value), torch.isinf(found) & ~finite)
        assert torch.equal(value[torch.isinf(value)], found[torch.isinf(value)])
        assert torch.isnan(found[torch.isnan(value)]).all()
    else:
        assert torch.isnan(found[~finite]).all()
    assert not torch.isnan(found[finite]).any()
    exact, got = value[finite].double(), found[finite].double()
    most = exact.abs().max().item() if exact.numel() else 0.0
    if most > 3e38:  # rounding the largest numbers of float32 up is infinity
        return
    # Blocks with something not finite have a scale up to 2**7 too large, and none is below 2**-93.
    slack = 2.0 ** (7 if not finite.all() else 0)
    top = max(2 * most * slack, 2.0**-92)
    fields = (1 << (storage.bits - storage.is_signed - storage.mantissa)) - 1
    least = top * 2.0**-fields  # the smallest gap, but for those without a sign
    step = 2.0**-storage.mantissa
    bound = torch.maximum(exact.abs() * step, torch.tensor(2 * least * (1.0 + 2 * step)))
    assert ((got - exact).abs() <= bound).all()
    assert (got[exact == 0] == 0).all()
    if not storage.is_signed:
        normal = exact >= torch.finfo(torch.float32).tiny
        assert (got[normal] > 0).all()


@pytest.mark.parametrize("storage", MINI, ids=IDS)
def test_what_was_stored_is_stored_again_as_it_is(storage: MiniFloat) -> None:
    """As long as the block's scale is the same: it may be one lower than for what was rounded."""
    torch.manual_seed(0)
    value = torch.randn(40 * BLOCK).exp() * torch.randn(40 * BLOCK).sign()
    value = value if storage.is_signed else value.abs()
    columns = stored(storage, value, key=1)
    again = stored(storage, read(storage, columns, value.shape), key=2)
    same = columns[1] == again[1]
    assert same.sum() > 5
    found = [read(storage, x, value.shape).view(-1, BLOCK)[same] for x in (columns, again)]
    assert torch.equal(*found)


RANDOM: list[Format] = [
    *MINI,
    StochasticFloat(torch.bfloat16),
    StochasticFloat(torch.float16),
    SplitFormat(8),
]


@pytest.mark.parametrize("storage", RANDOM, ids=lambda x: x.name)
def test_rounding_at_random_is_right_on_average(storage: Format) -> None:
    torch.manual_seed(0)
    value = (torch.randn(2 * BLOCK) * 3).abs() + 0.5
    value[0] = 2.0**5
    tries = 4000
    mean = torch.zeros(value.shape, dtype=torch.float64)
    for k in range(tries):
        mean += read(storage, stored(storage, value, key=mixed(7, k)), value.shape).double()
    # One code is at most all of the number (4 bits) apart: a standard deviation of half of that.
    step = {"int4": 1.0, "uint4": 1.0, "int8": 2**-3, "uint8": 2**-3}.get(storage.name, 2**-7)
    deviation = 0.5 * step * value.double() / math.sqrt(tries)
    assert ((mean / tries - value).abs() <= 5 * deviation).all()


@pytest.mark.parametrize(
    "storage",
    [*RANDOM, SplitFormat(16), KahanFormat(torch.bfloat16), KahanFormat(torch.float16)],
    ids=lambda x: x.name,
)
def test_without_random_bits_the_nearest_is_taken(storage: Format) -> None:
    torch.manual_seed(0)
    value = torch.rand(3 * BLOCK + 5) + 0.25
    nearest = read(storage, stored(storage, value), value.shape)
    for key in range(20):
        other = read(storage, stored(storage, value, key), value.shape)
        assert ((nearest - value).abs() <= (other - value).abs() + 1e-9).all()


def test_a_split_number_is_float32_bit_for_bit() -> None:
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (1 << 16,), dtype=torch.int64).to(torch.int32)
    value = bits.view(torch.float32)
    storage = SplitFormat(16)
    columns = stored(storage, value)
    found = read(storage, columns, value.shape)
    is_nan, is_tiny = torch.isnan(value), value.abs() < 2.0**-134
    kept = ~(is_nan | is_tiny)
    assert torch.equal(found.view(torch.int32)[kept], bits[kept])
    assert (found[is_tiny] == 0).all()
    assert torch.isnan(found[is_nan]).all()
    # The parameter by itself is the nearest bfloat16 (ties away from 0), and nan where it is nan.
    away = (columns[0].float() - value).abs() <= (value.bfloat16().float() - value).abs()
    assert (away | is_nan | torch.isinf(columns[0])).all()
    assert torch.equal(torch.isnan(columns[0]), is_nan)


def test_split24_is_within_a_bit_of_24() -> None:
    value = torch.randn(5000)
    found = read(SplitFormat(8), stored(SplitFormat(8), value, key=3), value.shape)
    assert ((found - value).abs() <= value.abs() * 2.0**-15).all()


def test_stochastic_half_precision_keeps_what_is_not_finite() -> None:
    value = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e-7, -3e-8])
    for dtype in (torch.bfloat16, torch.float16):
        found = read(StochasticFloat(dtype), stored(StochasticFloat(dtype), value, 5), value.shape)
        assert found[:2].tolist() == [math.inf, -math.inf]
        assert found[2].isnan()
        assert ((found[3:] - value[3:]).abs() <= 2**-24).all()


def word_of(key: int, index: int) -> int:
    """The definition, with Python's integers."""
    x = (index * 0x9E3779B9 + mixed(key, index >> 32)) % 2**32
    return ((x ^ x >> 15) * 0x846CA68B) % 2**32


def test_random_words_are_a_hash_of_key_and_index() -> None:
    for key in (0, 1, 0xFFFFFFFF, 123456789):
        words = random_words(key, torch.Size([50, 3]), CPU).reshape(-1).tolist()
        assert [x % 2**32 for x in words] == [word_of(key, i) for i in range(150)]


def test_random_words_look_random() -> None:
    """Uniform, and independent between neighbours, steps, arrays and parameters."""
    size = 1 << 16
    key = param_key(0, "layer.weight")
    keys = [array_key(key, 1, 1), array_key(key, 2, 1), array_key(key, 1, 2)]
    keys.append(array_key(param_key(0, "layer.bias"), 1, 1))
    keys.append(array_key(param_key(1, "layer.weight"), 1, 1))
    rows = [random_words(k, torch.Size([size]), CPU).double() / 2**32 for k in keys]
    bound = 5 / math.sqrt(size)
    for row in rows:
        assert abs(row.mean().item()) < bound * 0.29
        counts = torch.histc(row, 256, -0.5, 0.5)
        assert ((counts - size / 256) ** 2 / (size / 256)).sum() < 255 + 5 * math.sqrt(2 * 255)
        for lag in (1, 2, 3, 8, 16, 64, 128):
            assert abs((row[lag:] * row[:-lag]).mean().item() * 12) < bound
    for i, one in enumerate(rows):
        for other in rows[:i]:
            assert abs((one * other).mean().item() * 12) < bound


@steprule.rule(unsigned=steprule.Slot(signed=False))
def keep(param: Any, grad: Any, signed: Any, unsigned: Any, *, lr: Any) -> Any:
    """Store the gradient, and its absolute value."""
    return param + lr * grad, grad + 0 * signed, abs(grad) + 0 * unsigned


Keep = steprule.make_optimizer(keep, lr=0.0)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("rounding", ["kahan", "split", "split24"])
def test_a_weight_that_somebody_sets_is_what_he_set(rounding: Any, engine: str) -> None:
    """Pruning masks, clamps, a head made anew: the rest of what was there must not count."""
    torch.manual_seed(0)
    param = torch.randn(1000).bfloat16().requires_grad_()
    optimizer = steprule.SGD([param], lr=1e-3, param_rounding=rounding, engine=engine)
    for _ in range(3):
        param.grad = torch.randn(1000).bfloat16()
        optimizer.step()
    for value in (0.0, -0.0, 1e-3, 100.0):
        with torch.no_grad():
            param.fill_(value)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        assert ((param.float() - value).abs() <= abs(value) * 2**-8).all()


@pytest.mark.parametrize("engine", ["eager", "fused"])
def test_finite_float16_weights_stay_finite(engine: str) -> None:
    param = torch.full((5000,), 64992.0).half().requires_grad_()
    optimizer = steprule.SGD([param], lr=1.0, param_rounding="stochastic", engine=engine)
    param.grad = torch.full_like(param, -520.0)
    optimizer.step()  # 65512, of which 65504 is the nearest
    assert torch.isfinite(param).all()
    param.grad = torch.full_like(param, -60000.0)
    optimizer.step()
    assert torch.isinf(param).all()


@pytest.mark.parametrize("state_format", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("size", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
def test_every_engine_stores_the_same_bits(state_format: str, size: int) -> None:
    torch.manual_seed(size)
    scale = torch.randint(-60, 30, (size,)).float()
    plain = torch.randn(size) * 2**scale
    grads = [torch.zeros(size), plain, torch.randn(size)]
    for bad in ([math.inf], [math.nan], [-math.inf, math.nan, 3e38]):
        grad = torch.randn(size)
        grad[: len(bad)] = torch.tensor(bad)[:size]
        grads.append(grad)
    if state_format != "bfloat16":  # which keeps what the kernel takes for 0
        grads.append(torch.full((size,), 1e-40))
    for grad in grads:
        found = []
        for engine in ("eager", "foreach", "fused"):
            param = torch.zeros(size, requires_grad=True)
            options = {"state_format": state_format, "state_format_min_size": 0}
            optimizer = Keep([param], engine=engine, **options)
            # Nothing of what was there before comes through: 0 * inf would.
            param.grad = grad.clone()
            optimizer.step()
            assert optimizer.explain().rows[0].engine == engine
            found.append(optimizer.state[param])
        for other in found[1:]:
            for key in ("signed", "unsigned", *(k for k in found[0] if ":" in k)):
                one, two = found[0][key], other[key]
                torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_bits_do_not_depend_on_engine_or_threads() -> None:
    """A rule whose arithmetic is exact in any order: then all bits must be the same."""
    threads = torch.get_num_threads()
    found = []
    try:
        for engine, count in (("eager", 1), ("foreach", 2), ("fused", 1), ("fused", 2)):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            params = [torch.randn(n).bfloat16().requires_grad_() for n in (300_001, 5000)]
            optimizer = steprule.SGD(
                params,
                lr=2**-6,
                momentum=0.5,
                state_format="int8",
                param_rounding="stochastic",
                engine=engine,
            )
            for k in range(5):
                generator = torch.Generator().manual_seed(k)
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator).bfloat16()
                optimizer.step()
            assert {row.engine for row in optimizer.explain().rows} == {engine}
            state = [x for entry in optimizer.state.values() for x in entry.values()]
            found.append([p.detach() for p in params] + state)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)


def test_a_seed_makes_another_run() -> None:
    runs = [
        trained(made("Adam", state_format="int8", rounding_seed=seed), 0, 3) for seed in (0, 0, 1)
    ]
    codes = [run.tensors()["0.exp_avg"] for run in runs]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
