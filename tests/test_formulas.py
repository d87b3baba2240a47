"""Formulas say what the rules do: read back from LaTeX, they give the numbers of the functions."""

# ruff: noqa: RUF001  # mathematics has these letters
from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import steprule
from steprule import ops
from steprule.cli import main
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.formulas import formulas, latex, latex_of_symbol, text
from steprule.language.form import form_of
from steprule.language.guards import clip_factor
from steprule.language.rule import listed
from steprule.matrix_ops.orthogonalization import orthogonalized_list
from steprule.ops import sign, tanh
from steprule.schedules import linear
from tests.latex_values import values_of

ROWS, COLUMNS = 3, 4
WITH_RULES = {name: cls for name, cls in steprule.OPTIMIZERS.items() if cls.rule is not None}
# The computations are the same but for their order, in float64; what is subtracted within them
# (a bias correction of 1 - 0.999) costs some digits.
RTOL = 1e-12
SHARED: list[dict[str, Any]] = [
    {"maximize": True},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "peak_lr": 0.5},
    {"cautious": True},
    {"ema_decay": 0.99},
    {"clip_grad_norm": 1.0, "clip_grad_norm_over": "param", "clip_grad_value": 0.5},
    {"clip_grad_norm": 0.7},
    {"clip_grad_norm": 0.7, "clip_grad_norm_over": "group"},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "cautious_weight_decay": True},
]
OWN: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"momentum": 0.9, "dampening": 0.1}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("sgd", {"momentum": 0.9, "classic_momentum": True}),
    ("adam", {"amsgrad": True}),
    ("adam", {"eps_inside_sqrt": True}),
    ("rmsprop", {"centered": True, "momentum": 0.9}),
    ("adagrad", {"lr_decay": 0.1}),
    ("adabelief", {"rectify": False, "amsgrad": True}),
    ("adafactor", {"eps": (1e-20, 1e-3), "weight_decay": 0.1}),
    ("adan", {"no_prox": True, "weight_decay": 0.1}),
    ("ademamix", {"alpha_warmup": 10, "beta3_warmup": 20}),
    ("adopt", {"clip_exp": None}),
    ("grokadamw", {"layer": 2, "grokking_signal": 0.5}),
    ("lamb", {"weight_decay": 0.1}),
    ("lars", {"weight_decay": 0.1, "nesterov": True}),
    ("muon", {"adjust_lr_fn": "match_rms_adamw", "nesterov": False}),
    ("prodigy", {"use_bias_correction": True, "safeguard_warmup": True, "weight_decay": 0.1}),
    ("schedulefreeadamw", {"warmup_steps": 5, "r": 0.5, "weight_decay": 0.1}),
    ("schedulefreesgd", {"weight_decay": 0.1}),
    ("shampoo", {"grafting": "sgd", "exponent": 0.3}),
    ("shampoo", {"grafting": "none", "betas": (0.9, 1.0), "max_preconditioner_dim": 3}),
    ("soap", {"normalize_grads": True, "shampoo_beta": 0.9}),
]


def same_values(
    param: Any, grad: Any, exp_avg: Any, ema: Any, total: Any, *, lr: Any, beta: Any
) -> Any:
    exp_avg = beta * exp_avg + (1 - beta) * grad
    return param - lr * total * ema, exp_avg, exp_avg * 1.0, exp_avg


def param_kept(param: Any, grad: Any, z: Any, *, lr: Any) -> Any:
    new = z - lr * grad
    return new, new


def grad_kept(param: Any, grad: Any, z: Any, prev: Any, *, lr: Any) -> Any:
    return param - lr * (grad + z - prev), grad, grad


def swapped(param: Any, grad: Any, a: Any, b: Any, *, lr: Any) -> Any:
    return param - lr * grad * a, b, a


def unchanged(param: Any, grad: Any, *, lr: Any) -> Any:
    return param


def option_called_t(param: Any, grad: Any, *, lr: Any, t: Any, step: Any) -> Any:
    return param - lr * t * t**step * step * grad


def small_numbers(param: Any, grad: Any, *, lr: Any, step: Any) -> Any:
    return param - (1e-7**step + 1.5e-7**step + 0.5**step) * grad * lr - 2.5e-4**grad


def large_numbers(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * (1e6 * grad + 1e7) / (1234567.0 * grad + 1.5e30) - lr * 1234560000.0


def negative_powers(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * (grad**-2 * grad**2 + grad**-3 * grad**-1)


def not_a_number(param: Any, grad: Any, a: Any, *, lr: Any) -> Any:
    return param - lr * grad, ops.where(grad > 100, float("nan"), a)


def conditions_as_numbers(param: Any, grad: Any, a: Any, *, lr: Any) -> Any:
    either = (grad > 0.1) + (grad < -1)
    small = (grad > 0.1) * ((abs(a) > 0.5) / 2) - (a > 0) * 1.0
    # Not of a number first: torch takes a truth value times a number as float32.
    return param - either * grad * lr - ((grad > 0) == (a > 0)) * a * lr, small * grad


def nested_choices(param: Any, grad: Any, a: Any, *, lr: Any) -> Any:
    inner = ops.where(a > 0, 1.0 / (a + 2), ops.where(grad > 0, a, grad))
    return param - lr * ops.where(abs(grad) > 0.5, inner, ops.where(a > 0, inner, 2.0)), a


def known_conditions(param: Any, grad: Any, *, lr: Any, clip: Any) -> Any:
    has_clip = clip == clip
    one = ops.where(has_clip & (abs(grad) > 1), clip, grad)
    two = ops.where(has_clip | (abs(grad) > 1), grad, 2 * grad)
    three = ops.where((clip != clip) | (abs(grad) > 1), grad, 3 * grad)
    return param - lr * (one + two + three)


#: What rules of one's own may do: a function, options beside lr, and lines that it has as text.
ODD: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "slots with one value": (same_values, {"beta": 0.9}, ["emaₜ   = mₜ", "totalₜ = mₜ"]),
    "a slot that is the parameter": (param_kept, {}, ["θₜ = zₜ₋₁ − γ gₜ", "zₜ = θₜ"]),
    "slots that are the gradient": (grad_kept, {}, ["zₜ = gₜ"]),
    "slots that change places": (swapped, {}, ["aₜ = bₜ₋₁", "bₜ = aₜ₋₁"]),
    "a parameter that stays": (unchanged, {}, ["θₜ = θₜ₋₁"]),
    "an option called t": (option_called_t, {"t": 0.9}, ["θₜ = θₜ₋₁ − γ t′ (t′)ᵗ t gₜ"]),
    "powers of small numbers": (
        small_numbers,
        {},
        ["θₜ = θₜ₋₁ − ((1e-7)ᵗ + (1.5e-7)ᵗ + 0.5ᵗ) γ gₜ − (2.5e-4)^gₜ"],
    ),
    "large numbers": (
        large_numbers,
        {},
        ["θₜ = θₜ₋₁ − γ (1e6 gₜ + 1e7)/(1234567 gₜ + 1.5e30) − 1.23456e9 γ"],
    ),
    "negative powers": (negative_powers, {}, ["θₜ = θₜ₋₁ − γ (gₜ⁻² gₜ² + gₜ⁻³/gₜ)"]),
    "a constant that is no number": (not_a_number, {}, ["aₜ = {nan if gₜ > 100, else aₜ₋₁}"]),
    "conditions as numbers": (
        conditions_as_numbers,
        {},
        ["θₜ = θₜ₋₁ − γ ((gₜ > 0.1) + (gₜ < −1)) gₜ − γ ((gₜ > 0) = (aₜ₋₁ > 0)) aₜ₋₁"],
    ),
    "choices within choices": (nested_choices, {}, []),
    "conditions that options decide": (
        known_conditions,
        {"clip": 2.0},
        ["oneₜ   = {clip if |gₜ| > 1, else gₜ}", "threeₜ = {gₜ if |gₜ| > 1, else 3 gₜ}"],
    ),
}


def made(name: str, options: Mapping[str, Any]) -> Any:
    param = torch.zeros(ROWS, COLUMNS, device="meta", requires_grad=True)
    return WITH_RULES[name]([param], **options)


def random_value(shape: tuple[int, ...], is_positive: bool) -> Tensor:
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    if is_positive:  # averages of squares: larger than squares of averages
        return x + 1.5 if shape else x
    return x * torch.where(torch.rand(shape) < 0.5, -1.0, 1.0)


@pytest.fixture(autouse=True)
def _one_parameter_is_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over several parameters are those over one; truth values are of float64."""
    monkeypatch.setattr(VOCABULARY, "dtype", torch.float64)
    monkeypatch.setattr(VOCABULARY, "ask", lambda own: own)


def check(optimizer: Any, step: int, printed: str | None = None) -> None:
    """Compare a step of the rule's function with what its formula comes to."""
    (group,) = optimizer.param_groups
    kind = optimizer._kind_of(group)
    options = kind.options_of(group)
    form = form_of(kind.rule, options).of_shape((ROWS, COLUMNS))
    (found,) = formulas(optimizer, shape=(ROWS, COLUMNS))

    arrays = {"param": random_value((ROWS, COLUMNS), False)}
    arrays["grad"] = random_value((ROWS, COLUMNS), False)
    slots: dict[str, Any] = dict.fromkeys(form.rule.slots)
    for name in form.present_slots:
        slot = form.rule.slots[name]
        shape = slot.shape_for((ROWS, COLUMNS), options)
        assert shape is not None
        value: Any = random_value(shape, not slot.signed or not shape)
        if slot.is_square:  # symmetric, as sums of products are
            value = value @ value.T + torch.eye(shape[0], dtype=torch.float64)
        slots[name] = value if shape else value.item()
    supplied = {
        "step": float(step),
        "first": step == 1,
        "machine_eps": 2.0**-52,
        "rows": float(ROWS),
        "columns": float(COLUMNS),
        "clip_factor": clip_factor(options["clip_grad_norm"] or 1.0, arrays["grad"].norm().item()),
    }
    numbers = {**options, **form.rule.scalar_values(options), **supplied}
    scalars = {name: numbers[name] for name in form.scalars}
    scalars = {n: float("nan") if x is None else float(x) for n, x in scalars.items()}
    returned = form(arrays["param"], arrays["grad"], *slots.values(), **scalars)

    inputs = {**arrays, **{n: x for n, x in slots.items() if x is not None}, **options, **scalars}
    values = {latex_of_symbol(symbol): inputs[name] for name, symbol in found.inputs.items()}
    values["t"] = float(step)

    def orthogonalized(x: Tensor, steps: int) -> Tensor:
        coefficients = (scalars["a"], scalars["b"], scalars["c"], scalars["eps"])
        return orthogonalized_list([x], *coefficients, steps, "standard")[0]

    printed = latex(found) if printed is None else printed
    known = values_of(printed, values, orthogonalized)
    new = dict(zip(["param", *form.rule.slots], listed(returned), strict=True))
    assert found.outputs.keys() == {name for name, x in new.items() if x is not None}
    for name in found.outputs:
        expected = torch.as_tensor(new[name], dtype=torch.float64)
        own = latex_of_symbol(found.inputs[name].at("t"))  # by which the next step knows it
        assert own in known, f"no line says what {name} becomes\n{printed}"
        ours = torch.as_tensor(known[own], dtype=torch.float64)
        # Muon's iteration is in bfloat16 on either side.
        rtol = 1e-2 if name == "param" and form.rule.name.startswith("muon") else RTOL
        is_close = torch.allclose(ours, expected, rtol=rtol, atol=rtol)
        assert is_close, f"{name}: {ours} is not {expected}\n{printed}"


def steps_of(name: str) -> tuple[int, ...]:
    return (1, 2, 10, 11) if name in ("shampoo", "soap") else (1, 7)


@pytest.mark.parametrize("name", WITH_RULES)
def test_formulas_give_the_numbers_of_the_rules(name: str) -> None:
    torch.manual_seed(1)
    for step in steps_of(name):
        check(made(name, {}), step)


@pytest.mark.parametrize(("name", "options"), OWN, ids=lambda x: str(x))
def test_formulas_with_options_of_rules(name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    for step in steps_of(name):
        check(made(name, options), step)


@pytest.mark.parametrize("options", SHARED, ids=lambda x: "+".join(x))
def test_formulas_with_options_of_all_rules(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    taken = 0
    for name in random.Random(str(options)).sample(list(WITH_RULES), 12):
        try:
            optimizer = made(name, options)
        except (TypeError, ValueError):  # an option that it refuses
            continue
        check(optimizer, 3)
        taken += 1
    assert taken > 3


@pytest.mark.parametrize(
    ("function", "options", "written"),
    ODD.values(),
    ids=ODD,
)
def test_odd_rules(function: Any, options: dict[str, Any], written: list[str]) -> None:
    torch.manual_seed(1)
    one = steprule.make_optimizer(steprule.rule(function), lr=0.1, **options)
    optimizer = one([torch.zeros(ROWS, COLUMNS, requires_grad=True)])
    for step in (1, 3):
        check(optimizer, step)
    (found,) = formulas(one, lr=0.1, **options)
    for line in written:
        assert line in text(found).splitlines()


def test_a_formula_without_a_term_gives_other_numbers() -> None:
    """The comparison sees what it is there to see."""
    printed = steprule.formula(steprule.Adam)
    wrong = printed.replace(r"\sqrt{\hat{v}_t}", r"\hat{v}_t")
    assert wrong != printed
    check(made("adam", {}), 7, printed)
    with pytest.raises(AssertionError, match="param"):
        check(made("adam", {}), 7, wrong)


def test_adam_reads_like_the_paper() -> None:
    assert steprule.formula(steprule.Adam) == "\n".join(
        (
            r"\begin{aligned}",
            r"m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t \\",
            r"v_t &= \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\",
            r"\hat{m}_t &= \frac{m_t}{1 - \beta_1^t} \\",
            r"\hat{v}_t &= \frac{v_t}{1 - \beta_2^t} \\",
            r"\theta_t &= \theta_{t-1} - \gamma \frac{\hat{m}_t}{\sqrt{\hat{v}_t} + \epsilon}",
            r"\end{aligned}",
        )
    )


def test_lion_as_text() -> None:
    (found,) = formulas(steprule.Lion, weight_decay=0.1)
    assert text(found).splitlines() == [
        "mₜ = β₂ mₜ₋₁ + (1 − β₂) gₜ",
        "θₜ = (1 − γ λ) θₜ₋₁ − γ sign(β₁ mₜ₋₁ + (1 − β₁) gₜ)",
    ]


def test_letters_are_the_same_in_all_variants_of_an_optimizer() -> None:
    terms = SHARED[:5]
    for i, (name, cls) in enumerate(WITH_RULES.items()):
        letters: dict[str, Any] = {}
        for options in ({}, SHARED[1], terms[i % len(terms)]):
            try:
                (found,) = formulas(cls, **options)
            except (TypeError, ValueError):  # an option that it refuses
                continue
            for quantity, symbol in found.inputs.items():
                assert letters.setdefault(quantity, symbol.letter) == symbol.letter, name


def test_conditions_on_an_option_that_is_none() -> None:
    own = steprule.rule(optional=("clip",))(known_conditions)
    (found,) = formulas(steprule.make_optimizer(own, lr=0.1, clip=None))
    assert text(found).splitlines() == [
        "twoₜ = {gₜ if |gₜ| > 1, else 2 gₜ}",
        "θₜ   = θₜ₋₁ − γ (gₜ + twoₜ + gₜ)",
    ]


def test_letters_of_ones_own_rule_differ() -> None:
    def greek(param: Any, grad: Any, *, lr: Any, γ: Any, momentum: Any, mu: Any, μ: Any) -> Any:
        return param - lr * γ * momentum * mu * μ * grad

    assert r"\gamma \gamma^{\prime} \mu \mu^{\prime} \tilde{\mu}^{\prime} g_t" in steprule.formula(
        steprule.rule(greek)
    )

    def numbered(param: Any, grad: Any, β_2: Any, *, lr: Any, ζ: Any) -> Any:
        return param - lr * ζ * β_2, grad

    (found,) = formulas(steprule.rule(numbered))
    assert text(found).splitlines() == ["θₜ  = θₜ₋₁ − γ ζ β₂ₜ₋₁", "β₂ₜ = gₜ"]


def test_clipping_by_the_norm_is_spelled_out() -> None:
    for scope, mark in (("all", "_all"), ("group", "_group"), ("param", "")):
        (found,) = formulas(steprule.SGD, clip_grad_norm=1.0, clip_grad_norm_over=scope)
        assert text(found).splitlines()[:2] == [
            f"c_clipₜ = min(cₙₒᵣₘ/(‖gₜ‖{mark} + 1e-6), 1)",
            "g̃ₜ      = c_clipₜ gₜ",
        ]


@pytest.mark.parametrize(
    ("start", "condition"),
    [
        (None, "10 | t,"),
        (20, "10 | t and t ≥ 20,"),
        (5, "(10 | t and t > 5) or t = 5,"),
    ],
)
def test_when_roots_are_renewed(start: int | None, condition: str) -> None:
    options = {"start_preconditioning_step": start}
    (found,) = formulas(steprule.Shampoo, **options)
    assert f"if {condition}" in text(found)
    torch.manual_seed(1)
    for step in (1, 5, 10, 15, 20):
        check(made("shampoo", options), step)


def test_options_that_are_zero_drop_out_and_others_do_not() -> None:
    assert "tau" not in steprule.formula(steprule.SGD, momentum=0.9)
    assert r"1 - \tau" in steprule.formula(steprule.SGD, momentum=0.9, dampening=0.5)
    assert steprule.formula(steprule.SGD, lr=0.0) == steprule.formula(steprule.SGD)


@pytest.mark.parametrize(
    ("name", "options", "of_numbers"),
    [
        ("adamw", {"weight_decay": linear(0.0, 0.1, steps=3)}, {"weight_decay": 0.1}),
        ("adamw", {"weight_decay": linear(0.1, 0.0, steps=2)}, {"weight_decay": 0.1}),
        ("sgd", {"momentum": linear(0.0, 0.9, steps=3)}, {"momentum": 0.9}),
        (
            "sgd",
            {"momentum": 0.9, "dampening": linear(0.0, 0.9, steps=3)},
            {"momentum": 0.9, "dampening": 0.5},
        ),
        ("adam", {"betas": (linear(0.0, 0.9, steps=3), 0.99)}, {}),
    ],
    ids=lambda x: str(x),
)
def test_an_option_with_a_schedule_is_a_symbol_at_every_step(
    name: str, options: dict[str, Any], of_numbers: dict[str, Any]
) -> None:
    cls = WITH_RULES[name]
    expected = steprule.formula(cls, **of_numbers)
    assert steprule.formula(cls, **options) == expected
    param = torch.ones(2, 3, requires_grad=True)
    optimizer = cls([param], **options)
    for _ in range(4):
        assert steprule.formula(optimizer) == expected
        param.grad = torch.ones(2, 3)
        optimizer.step()
    # A number in its place is known; a schedule in the place of a number is not.
    constants = dict.fromkeys(options, 0.0) if "betas" not in options else {"betas": (0.0, 0.99)}
    assert steprule.formula(optimizer, **constants) == steprule.formula(
        cls, **{**of_numbers, **constants}
    )
    assert steprule.formula(cls([param]), **options) == expected
    assert cls.rule is not None
    if "betas" not in options:
        off = {n: 0.0 for n in ("weight_decay", "dampening") if n in cls.rule.options}
        given = {**off, **options}
        numbers = {**off, **of_numbers}
        assert steprule.formula(cls.rule, **given) == steprule.formula(cls.rule, **numbers)


def test_groups_with_different_formulas() -> None:
    weights = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    groups = [{"params": [w], "momentum": m} for w, m in zip(weights, (0.9, 0, 0.8), strict=True)]
    found = steprule.formula(steprule.SGD(groups, lr=0.1))
    assert found.startswith("% groups 0, 2\n\\begin{aligned}\nb_t")
    assert "% group 1\n\\begin{aligned}\n\\theta_t" in found
    combined = steprule.combine(steprule.SGD(weights[:1]), steprule.Lion(weights[1:]))
    assert steprule.formula(combined).count("% group") == 2


@steprule.rule
def soft_lion(param: Any, grad: Any, exp_avg: Any, my_state: Any, *, lr: Any, sharp: Any) -> Any:
    soft_step = tanh(sharp * (exp_avg + grad) + my_state)
    return param - lr * soft_step, sign(soft_step), soft_step


def test_a_rule_of_ones_own_keeps_its_names() -> None:
    found = steprule.formula(soft_lion)
    assert r"\text{my\_state}_t &= \tanh(\text{sharp} \, (m_{t-1} + g_t)" in found
    assert r"\theta_t &= \theta_{t-1} - \gamma \, \text{my\_state}_t" in found
    made_of_it = steprule.make_optimizer(soft_lion, lr=0.1, sharp=2.0)
    assert steprule.formula(made_of_it) == found
    assert r"\lambda \theta_{t-1}" in steprule.formula(made_of_it, weight_decay=0.1)


@steprule.rule
def of_everything(
    param: Any, grad: Any, a: Any, b: Any, c: Any, *, step: Any, lr: Any, low: Any, power: Any
) -> Any:
    bits = ops.where((grad > low) & ~(a != b) | (abs(b) <= 0.7), grad / a, -((grad - a) ** 2))
    smooth = ops.sigmoid(a) * ops.tanh(bits) - ops.log1p(abs(b)) + ops.expm1(-abs(c)) / a
    norms = ops.norm_of(b) + ops.max_of(c) * ops.mean_of(grad) - ops.sum_of(abs(a))
    total = ops.sum_of(c) + ops.dot_of(a, b) + ops.square(ops.norm_of(c)) + ops.sum_of(b * b)
    odd = ops.floor(step / 2) * ops.where(grad > 0, 1.0, b) + 2.0 ** -(step - low)
    rows = ops.max_of(c) - abs(norms) ** power / (1.5e-7 * abs(total) - (norms - low))
    deep = 1 / (1 / (a / b)) - (a - (b - (c - 3))) * -2 + a / (-b)
    return param - lr * (smooth + rows) / abs(total), deep, odd + ops.log(abs(c)), ops.rsqrt(abs(b))


@pytest.mark.parametrize("step", [1, 2, 5])
def test_every_operation_is_written(step: int) -> None:
    torch.manual_seed(step)
    cls = steprule.make_optimizer(of_everything, lr=0.1, low=0.3, power=1.7)
    check(cls([torch.zeros(ROWS, COLUMNS, requires_grad=True)]), step)


def test_shapes_have_formulas_of_their_own() -> None:
    assert "C_t" in steprule.formula(steprule.Adafactor)
    assert "C_t" not in steprule.formula(steprule.Adafactor, shape=(10,))
    assert "V_t" in steprule.formula(steprule.Adafactor, shape=(10,))


def test_a_number_without_axes_has_a_formula() -> None:
    of_vector = steprule.formula(steprule.Adafactor, shape=(10,))
    assert steprule.formula(steprule.Adafactor, shape=()) == of_vector
    assert steprule.formula(steprule.Adafactor.rule, shape=()) == steprule.formula(
        steprule.Adafactor.rule, shape=(10,)
    )


def test_options_are_checked_as_the_optimizer_checks_them() -> None:
    adam = steprule.Adam([torch.zeros(2, requires_grad=True)])
    adamw = steprule.AdamW([torch.zeros(2, requires_grad=True)])
    of_adopt = steprule.ADOPT.rule
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (adam, {"amsgrat": True}, TypeError, r"Adam has no option amsgrat \(did you mean 'amsgrad"),
        (adam, {"betas": (5, 7)}, ValueError, r"group 0: .*betas\[0\] must be in \[0, 1\)"),
        (adam, {"betas": 3}, TypeError, "betas must be 2 numbers"),
        (adam, {"amsgrad": "no"}, TypeError, "amsgrad must be True or False, got str 'no'"),
        (adam, {"params": []}, TypeError, "no option params"),
        (adamw, {"peak_lr": "a"}, TypeError, "peak_lr must be a number"),
        (of_adopt, {"clip_exp": "x"}, TypeError, "clip_exp must be a number"),
        (steprule.Adam.rule, {"amsgrad": "no"}, TypeError, "amsgrad must be True or False"),
        (steprule.Adam.rule, {"peak_lr": 0.1}, ValueError, "decoupled_weight_decay=True as well"),
        (
            soft_lion,
            {"sharpe": 2.0},
            TypeError,
            r"sharpe \(did you mean 'sharp'\?\); it has lr",
        ),
        (soft_lion, {"gama": 2.0}, TypeError, "sharp, and as every rule weight_decay, maximize"),
    ]
    for what, options, kind, message in refused:
        with pytest.raises(kind, match=message):
            steprule.formula(what, **options)
    assert adam.param_groups[0]["amsgrad"] is False
    assert steprule.formula(adam, amsgrad=True) == steprule.formula(steprule.Adam, amsgrad=True)


def test_a_rule_takes_the_options_of_every_optimizer() -> None:
    options = {"weight_decay": 0.1, "decoupled_weight_decay": True, "cautious": True}
    made_of_it = steprule.make_optimizer(soft_lion, lr=0.1, sharp=2.0)
    assert steprule.formula(soft_lion, **options) == steprule.formula(made_of_it, **options)
    with_average = steprule.formula(soft_lion, ema_decay=0.9, clip_grad_norm=1.0)
    assert with_average == steprule.formula(made_of_it, ema_decay=0.9, clip_grad_norm=1.0)


def test_an_option_of_one_class_leaves_the_others_groups_alone() -> None:
    weights = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    combined = steprule.combine(steprule.SGD(weights[:1]), steprule.Lion(weights[1:]))
    first, second = formulas(combined, momentum=0.9, weight_decay=0.1)
    assert latex(first) == steprule.formula(steprule.SGD, momentum=0.9, weight_decay=0.1)
    assert latex(second) == steprule.formula(steprule.Lion, weight_decay=0.1)
    with pytest.raises(TypeError, match="no option amsgrad"):
        steprule.formula(combined, amsgrad=True)


def test_what_has_no_formula_is_said() -> None:
    with pytest.raises(TypeError, match="needs an optimizer class, an optimizer or a rule, got 3"):
        steprule.formula(3)
    with pytest.raises(ValueError, match="no formula of LBFGS, which has no rule:"):
        steprule.formula(steprule.LBFGS)
    weight = torch.zeros(2, requires_grad=True)
    with pytest.raises(
        ValueError, match="no formula of Lookahead, which is around another optimizer"
    ):
        steprule.formula(steprule.Lookahead(steprule.SGD([weight])))
    with pytest.raises(ValueError, match="no formula of SGD, which is no optimizer of steprule"):
        steprule.formula(torch.optim.SGD([weight]))
    with pytest.raises(TypeError, match="has no option nesterof; it has lr, sharp"):
        steprule.formula(soft_lion, nesterof=True)
    with pytest.raises(TypeError):
        steprule.formula(steprule.SGD, nesterof=True)


def test_every_symbol_of_a_formula_is_explained() -> None:
    for name, cls in WITH_RULES.items():
        for found in formulas(cls):
            made_here = {line.symbol for line in found.lines}
            known = {*found.inputs.values(), *found.outputs.values(), *made_here}
            letters = {symbol.letter for symbol in known}
            assert len({latex_of_symbol(x) for x in letters}) == len(letters), name
            assert not re.search(r"operatorname\{(?!NewtonSchulz|QR)\w*_", latex(found)), name


def test_the_command_prints_latex_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formula", "adam", "--options", "amsgrad=true"]) == 0
    assert capsys.readouterr().out == steprule.formula(steprule.Adam, amsgrad=True) + "\n"
    assert main(["formula", "SGD", "--text"]) == 0
    assert capsys.readouterr().out == "θₜ = θₜ₋₁ − γ gₜ\n"
    assert main(["formula", "adam+cautious"]) == 0
    assert capsys.readouterr().out == steprule.formula(steprule.Adam, cautious=True) + "\n"
    for written in ("weight_decay=linear(0, 0.1, steps=9)", "weight_decay=0.1"):
        assert main(["formula", "adamw", "--options", written]) == 0
        assert capsys.readouterr().out == steprule.formula(steprule.AdamW) + "\n"
    for written, shape in (("64", (64,)), ("8x9", (8, 9)), ("scalar", ())):
        assert main(["formula", "adafactor", "--shape", written]) == 0
        found = steprule.formula(steprule.Adafactor, shape=shape)
        assert capsys.readouterr().out == found + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formula", "adem"], "unknown optimizer 'adem' (did you mean 'adam'?); those of"),
        (["formula", "lbfgs"], "there is no formula of LBFGS"),
        (["formula", "adam", "--options", "betas=3"], "betas"),
        (["formula", "adam", "--options", "amsgrat=true"], "amsgrat"),
        (["formula", "adam+amsgrad", "--options", "amsgrad=false"], "amsgrad is given twice"),
        (["formula", "adam", "--options", "shape=3"], "shape must be a tuple"),
        (
            ["formula", "adam", "--options", "lr=linaer(0, 1, steps=9)"],
            "lr=linaer(0, 1, steps=9), column 1: ",
        ),
        (["formula", "adam+=3"], "steprule formula adam+=3: expected an option's name"),
        (["formula", "adam", "--shape", "0x3"], "--shape 0x3: expected lengths of at least 1"),
        (["formula", "torch:adam"], "torch's classes are not recorded; ask for adam alone"),
        (["formula", "sam:sgd"], "sam goes round an optimizer and has no rule; ask for sgd"),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)
def test_the_command_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
