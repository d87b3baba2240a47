"""Rules as mathematics, read off what was recorded of them: LaTeX, and text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import torch

from steprule.formulas.graph import Graph
from steprule.formulas.latex import latex as latex
from steprule.formulas.latex import latex_lines as latex_lines
from steprule.formulas.latex import latex_of_symbol as latex_of_symbol
from steprule.formulas.lines import Formula as Formula
from steprule.formulas.lines import formula_of
from steprule.formulas.local_names import with_local_names
from steprule.formulas.plain_text import text as text
from steprule.formulas.settled import form_of_rule, forms_of_groups
from steprule.formulas.whole_form import whole
from steprule.language.form import Form, record_form
from steprule.language.rule import Rule
from steprule.optimizer import Optimizer

__all__ = ["Formula", "formula", "latex", "latex_lines", "latex_of_symbol", "lines_of", "text"]

_MATRIX = (64, 64)


def formula(what: Any, *, shape: Sequence[int] = _MATRIX, **options: Any) -> str:
    """Return the update of an optimizer as LaTeX, read off the function that runs.

    The lines stand in an ``aligned`` environment, as they are computed: state before the step has
    the index t-1, new state t. Symbols are those of torch's documentation where it has one: θ the
    parameter, g its gradient, γ ``lr``, λ ``weight_decay``, m and v averages of the gradient and of
    its square. Options that are numbers are symbols, whatever their values; terms that a value of 0
    takes away are left out, unless a schedule gives it, which has other values at other steps.
    What the rule is fixed by before it is recorded stands there as it is: truth values, words,
    counts (``precondition_frequency``, Muon's iterations), and Shampoo's ``exponent``.

    Args:
        what: an optimizer class (with its default options), an optimizer (with those of its
            groups), or a rule that :func:`steprule.rule` made.
        shape: that of the parameter, on which some rules depend: Adafactor, Shampoo and SOAP treat
            matrices otherwise than vectors (default: a matrix).
        **options: options in the place of those that it has, such as ``amsgrad=True``; where
            classes were combined, of the groups whose class has them. Of a rule, the others are
            symbols.

    Returns:
        LaTeX, for amsmath, MathJax or KaTeX. Where groups of an optimizer have different formulas,
        one after the other, each after a comment that says for which groups.

    Raises:
        TypeError: ``what`` is something else, ``shape`` no tuple of integers, or an option is
            unknown or of the wrong kind.
        ValueError: there is no formula (LBFGS, wrappers, a rule that cannot be recorded), or an
            option is out of its range, or a length in ``shape`` below 1.

    Example:
        >>> import steprule
        >>> print(steprule.formula(steprule.SGD, momentum=0.9))
        \\begin{aligned}
        b_t &= \\mu b_{t-1} + g_t \\\\
        \\theta_t &= \\theta_{t-1} - \\gamma b_t
        \\end{aligned}
    """
    by_lines: dict[str, list[int]] = {}
    for group, one in enumerate(formulas(what, shape=shape, **options)):
        by_lines.setdefault(latex(one), []).append(group)
    if len(by_lines) == 1:
        return next(iter(by_lines))
    return "\n".join(
        f"% group{'s' * (len(groups) > 1)} {', '.join(map(str, groups))}\n{lines}"
        for lines, groups in by_lines.items()
    )


def check_shape(shape: Any) -> None:
    """Check what is said of a parameter's shape.

    Raises:
        TypeError: it is no sequence of integers.
        ValueError: a length below 1.
    """
    is_sequence = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not is_sequence or any(isinstance(n, bool) or not isinstance(n, int) for n in shape):
        raise TypeError(
            f"shape must be a tuple of a parameter's lengths, such as (64, 64), got {shape!r}"
        )
    if any(n < 1 for n in shape):
        raise ValueError(f"shape must have lengths of at least 1, got {tuple(shape)}")


def formulas(what: Any, *, shape: Sequence[int] = _MATRIX, **options: Any) -> list[Formula]:
    """Return the lines of :func:`formula`, one formula for each group of an optimizer."""
    check_shape(shape)
    if isinstance(what, Rule):
        return [lines_of(*form_of_rule(what, options), shape)]
    if isinstance(what, type) and issubclass(what, Optimizer):
        param = torch.zeros(tuple(shape), device="meta", requires_grad=True)
        make: Callable[..., Optimizer] = what
        return formulas(make([param], **options), shape=shape)
    if not isinstance(what, torch.optim.Optimizer):
        raise TypeError(
            f"formula needs an optimizer class, an optimizer or a rule, got {what!r}: a function "
            "becomes a rule by @steprule.rule"
        )
    return [lines_of(*found, shape) for found in forms_of_groups(what, options)]


def lines_of(form: Form, options: Mapping[str, Any], shape: Sequence[int] = _MATRIX) -> Formula:
    """Return the lines of a form.

    Args:
        form: the rule and its flags.
        options: values that options are known to have: terms with a 0 drop out, choices between
            cases that depend on options alone are made. A word stands for a number that is not.
        shape: of the parameter.

    Raises:
        ValueError: the rule can't be recorded.
    """
    if not form.rule.is_recorded:
        raise ValueError(
            f"there is no formula of {form.rule.name}: it is not elementwise, and what it does to "
            "whole matrices cannot be recorded"
        )
    recording, names = with_local_names(lambda: record_form(whole(form.of_shape(tuple(shape)))))
    given = {**options, **form.rule.scalar_values(options)} if options else {}
    slots = {*form.present_slots}
    values = {
        name: math.nan if given[name] is None else float(given[name])
        for name in recording.scalar_inputs
        if name not in slots and isinstance(given.get(name, ""), (int, float, NoneType))
    }
    zeros = [name for name, value in values.items() if value == 0 and name != "lr"]
    return formula_of(Graph(recording, zeros, values), names)
