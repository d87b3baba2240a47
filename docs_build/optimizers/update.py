"""The update of an optimizer, read off what runs: its lines, variants, and what symbols are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from docs_build.mathematics import aligned, source
from docs_build.optimizers import symbols
from steprule.cli.catalogue import defaults_of
from steprule.formulas import Formula, formulas, latex_lines
from steprule.language.rule import Rule
from steprule.optimizer import Optimizer
from steprule.rules.sophiag import hessian_average

# Options whose formulas are shown beside that of the defaults.
VARIANTS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "sgd": (
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-4},
        {"momentum": 0.9, "classic_momentum": True},
    ),
    "adam": ({"amsgrad": True}, {"weight_decay": 1e-2}),
    "adamw": ({"amsgrad": True}, {"peak_lr": 1e-3}, {"cautious": True}),
    "rmsprop": ({"momentum": 0.9}, {"centered": True}),
    "adagrad": ({"lr_decay": 0.1},),
    "adabelief": ({"rectify": False}, {"weight_decay": 1e-2}),
    "ademamix": ({"alpha_warmup": 1000, "beta3_warmup": 1000},),
    "grokadamw": ({"grokking_signal": 0.5, "layer": 2},),
    "lars": ({"weight_decay": 1e-4}, {"nesterov": True}),
    "muon": ({"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False}),
    "nadam": ({"weight_decay": 1e-2, "decoupled_weight_decay": True},),
    "schedulefreeadamw": ({"warmup_steps": 1000, "weight_decay": 1e-2},),
    "schedulefreesgd": ({"warmup_steps": 1000},),
    "shampoo": ({"grafting": "sgd"},),
    "adan": ({"weight_decay": 1e-2}, {"weight_decay": 1e-2, "no_prox": True}),
}
# What has a rule of its own, beside that of the step.
BESIDE: Mapping[str, tuple[str, Rule]] = {
    "sophiag": ("In `update_hessian`, with the gradient of drawn labels", hessian_average),
}
# What is computed from state where it is asked for, and no rule.
_EVALUATED = [r"x_t &= z_t + \frac{\theta_t - z_t}{\omega_t}"]
ON_EVAL = ("schedulefreesgd", "schedulefreeadamw")

_LBFGS = [
    r"s_t &= \theta_t - \theta_{t-1}",
    r"y_t &= g_t - g_{t-1}",
    r"H_t &= \left(I - \frac{s_t y_t^\top}{y_t^\top s_t}\right) H_{t-1} "
    r"\left(I - \frac{y_t s_t^\top}{y_t^\top s_t}\right) + \frac{s_t s_t^\top}{y_t^\top s_t}",
    r"\theta_{t+1} &= \theta_t - \gamma H_t g_t",
]


def shown(name: str, cls: type[Optimizer]) -> list[tuple[str, Formula]]:
    """Return the formulas of a page, each after the options that it is of, no two the same."""
    found = [("", formulas(cls)[0])]
    decays = {"weight_decay": 1e-2} if defaults_of(cls).get("weight_decay") == 0 else {}
    for options in VARIANTS.get(name, (decays,) if decays else ()):
        written = ", ".join(f"{k}={v!r}" for k, v in options.items())
        found.append((f"With <code>{escape(written)}</code>", formulas(cls, **options)[0]))
    assert cls.rule is not None
    if any(slot.shape in ("vector", "left") for slot in cls.rule.slots.values()):
        found.append(("Of a vector", formulas(cls, shape=(64,))[0]))
    by_lines = {"\n".join(latex_lines(one)): (title, one) for title, one in reversed(found)}
    return list(reversed(by_lines.values()))


def beside(name: str) -> list[Formula]:
    """Return the formulas of rules that an optimizer has beside its step."""
    found = formulas(BESIDE[name][1]) if name in BESIDE else []
    return [_without_param(one) for one in found]


def explained(name: str, cls: type[Optimizer]) -> list[Formula]:
    """Return the formulas whose symbols a page explains: what a rule beside sets is no input."""
    first, *variants = (one for _, one in shown(name, cls))
    for more in beside(name):
        lines = (*first.lines, *more.lines)
        first = Formula(lines, {**first.inputs, **more.inputs}, first.outputs)
    return [first, *variants]


def update(name: str, cls: type[Optimizer]) -> Iterator[str]:
    """Give the section."""
    yield from ("## Update", "")
    if cls.rule is None:
        yield from _of_lbfgs()
        return
    (_, first), *variants = shown(name, cls)
    yield from _lines(first)
    for formula in beside(name):
        yield from (f"{BESIDE[name][0]}:", "", *_lines(formula))
    if name in ON_EVAL:
        yield from (
            "The parameter θ, of which gradients are taken, is the y of the paper. Its average x "
            "is what one evaluates and ships; `optimizer.eval()` puts it in the parameter's place:",
            "",
            aligned(_EVALUATED),
            "",
        )
    for title, variant in variants:
        lines = latex_lines(variant)
        yield f"<details><summary>{title}</summary>{aligned(lines)}{source(lines)}</details>"
        yield ""
    yield " ".join(_how_to_read(cls))
    yield ""
    yield from symbols.table(cls, explained(name, cls))


def _lines(formula: Formula) -> Iterator[str]:
    lines = latex_lines(formula)
    yield from (aligned(lines), "", source(lines), "")


def _without_param(formula: Formula) -> Formula:
    """Return what a rule says that leaves the parameter as it is."""
    lines = [line for line in formula.lines if line.symbol != formula.outputs["param"]]
    return Formula(tuple(lines), formula.inputs, formula.outputs)


def _how_to_read(cls: type[Optimizer]) -> Iterator[str]:
    assert cls.rule is not None
    shapes = {slot.shape for slot in cls.rule.slots.values()}
    yield "The lines are read off the recorded rule that every engine runs, and stand in the order"
    yield "in which they are computed. Products, quotients and roots of arrays are taken element by"
    if "row" in shapes:
        yield "element; a column of numbers times a row is the matrix of all their products."
    elif "left" in shapes:
        yield "element, but products with a square matrix, or with something transposed, are those"
        yield "of matrices."
    else:
        yield "element."
    yield "Terms that an option's default of 0 takes away are left out. `steprule.formula` returns"
    yield "them for any options, and for rules of your own."


def _of_lbfgs() -> Iterator[str]:
    yield from (aligned(_LBFGS), "", source(_LBFGS), "")
    yield from (
        "LBFGS is no rule of elements, so these lines are written by hand, where those of",
        "other optimizers are read off what runs. g is the gradient of all parameters as one",
        "vector. H is never formed: its product with g is computed from the last",
        "`history_size` pairs s, y, beginning with the scaled identity. The factor before it",
        "is `lr`, or what the line search finds ([its own page](../lbfgs.md)).",
        "",
    )
