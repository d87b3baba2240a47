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
from steprule.matrix_ops.orthogonalization import orthogonalized_list
from steprule.ops import sign, tanh
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
        "clip_factor": 0.7,
    }
    numbers = {**options, **form.rule.scalar_values(options), **supplied}
    scalars = {name: numbers[name] for name in form.scalars}
    scalars = {n: float("nan") if x is None else float(x) for n, x in scalars.items()}
    returned = form(arrays["param"], arrays["grad"], *slots.values(), **scalars)

    inputs = {**arrays, **{n: x for n, x in slots.items() if x is not None}, **scalars}
    values = {latex_of_symbol(symbol): inputs[name] for name, symbol in found.inputs.items()}
    values["t"] = float(step)

    def orthogonalized(x: Tensor, steps: int) -> Tensor:
        coefficients = (scalars["a"], scalars["b"], scalars["c"], scalars["eps"])
        return orthogonalized_list([x], *coefficients, steps, "standard")[0]

    printed = latex(found) if printed is None else printed
    known = values_of(printed, values, orthogonalized)
    new = dict(zip(["param", *form.rule.slots], returned, strict=True))
    assert found.outputs.keys() == {name for name, x in new.items() if x is not None}
    for name, symbol in found.outputs.items():
        expected = torch.as_tensor(new[name], dtype=torch.float64)
        ours = torch.as_tensor(known[latex_of_symbol(symbol)], dtype=torch.float64)
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


def test_options_that_are_zero_drop_out_and_others_do_not() -> None:
    assert "tau" not in steprule.formula(steprule.SGD, momentum=0.9)
    assert r"1 - \tau" in steprule.formula(steprule.SGD, momentum=0.9, dampening=0.5)
    assert steprule.formula(steprule.SGD, lr=0.0) == steprule.formula(steprule.SGD)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formula", "adem"], "unknown optimizer 'adem' (did you mean 'adam'?); those of"),
        (["formula", "lbfgs"], "there is no formula of LBFGS"),
        (["formula", "adam", "--options", "betas=3"], "betas"),
        (["formula", "adam", "--options", "amsgrat=true"], "amsgrat"),
    ],
    ids=lambda x: x[1] if isinstance(x, list) else "",
)
def test_the_command_refuses(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
