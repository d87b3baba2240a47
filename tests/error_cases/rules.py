"""Rules of one's own: rule, Slot, Range, make_optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import steprule
from error_cases.case import Case
from steprule import Range, Slot

ABOUT = "Rules of your own"


def plain(param: Any, grad: Any, buffer: Any, *, lr: Any) -> Any:
    return param - lr * grad, buffer


def swapped(grad: Any, param: Any, *, lr: Any) -> Any:
    return param - lr * grad


def starred(param: Any, grad: Any, *slots: Any, lr: Any) -> Any:
    return param - lr * grad


#: What is decorated or said beside the function: argument, text, value, error, remedy.
DESCRIBED: tuple[tuple[str, str, Any, type[Exception], str], ...] = (
    ("ranges", "3", 3, TypeError, "Pass a dict from options to Range."),
    ("ranges", "(0, 1)", {"lr": (0, 1)}, TypeError, "Write Range(0, 1)."),
    ("parts", "3", 3, TypeError, "Pass a dict from an option to the names of its parts."),
    ("parts", "'low'", {"scales": "low"}, TypeError, "Pass a tuple of names, also for one."),
    ("source", "3", 3, TypeError, "Pass authors, title and year as text."),
    ("sparse", "'yes'", "yes", ValueError, "Pass a word that the message lists."),
    ("optional", "'lr'", "lr", TypeError, "Pass a tuple of options, also for one."),
    ("optional", "rho", ("rho",), TypeError, "Name numbers that the function takes."),
    ("slots", "3", 3, TypeError, "Describe the slot by a Slot."),
    *(
        (name, "'no'", "no", TypeError, "Pass True or False.")
        for name in (
            "counts_steps",
            "elementwise",
            "batched",
            "decoupled",
            "takes_complex",
            "keeps_denormals",
            "averages_param",
        )
    ),
)
FUNCTIONS: tuple[tuple[str, Any, tuple[str, ...], str], ...] = (
    ("3", 3, ("rule", "3"), "Decorate a function."),
    ("int", int, ("rule", "int"), "Decorate a function, not a class."),
    ("a function of (grad, param)", swapped, ("swapped", "grad"), "Take param and grad first."),
    ("a function of *slots", starred, ("starred", "*args"), "Name each slot."),
)
SLOTS: tuple[tuple[str, str, Any, type[Exception], str], ...] = (
    ("init", "None", None, TypeError, "Pass a number, or the name of the option that holds it."),
    ("when", "3", 3, TypeError, "Pass the name of an option."),
    ("when_is", "3", 3, TypeError, "Pass the word that the option must be."),
    ("longest", "3", 3, TypeError, "Pass the name of the option that has the length."),
    ("of_vectors", "True", True, TypeError, "Pass the name of an option."),
    ("full_precision", "3", 3, TypeError, "Pass the reason as text."),
    ("precise_when", "3", 3, TypeError, "Pass the name of an option."),
    ("shape", "'matrix'", "matrix", ValueError, "Pass a word that the message lists."),
    *(
        (flag.name, "'no'", "no", TypeError, "Pass True or False.")
        for flag in fields(Slot)
        if isinstance(flag.default, bool) and flag.name != "full_precision"
    ),
)
RANGES: tuple[tuple[str, str, Any, type[Exception], str], ...] = (
    ("low", "'0'", "0", TypeError, "Pass a number."),
    ("low", "2", 2, ValueError, "Put the smaller number first."),
    ("high", "nan", math.nan, TypeError, "Pass a number, math.inf for no bound."),
    ("low_included", "2", 2, TypeError, "Pass True or False."),
    ("high_included", "'no'", "no", TypeError, "Pass True or False."),
    ("is_finite", "None", None, TypeError, "Pass True or False."),
)
MADE: tuple[tuple[str, str, dict[str, Any], type[Exception], tuple[str, ...], str], ...] = (
    ("name", "3", {"name": 3}, TypeError, ("name", "3"), "Pass the class's name."),
    ("name", "'my opt'", {"name": "my opt"}, TypeError, ("name", "'my opt'"), "Leave blanks out."),
    ("defaults", "rho=1", {"rho": 1}, TypeError, ("rho",), "Give defaults of the rule's options."),
    ("defaults", "lr='1'", {"lr": "1"}, TypeError, ("lr", "'1'"), "Pass a number."),
    ("defaults", "lr=-1", {"lr": -1}, ValueError, ("lr", "-1"), "Pass a number in the range."),
    (
        "defaults",
        "maximize='no'",
        {"maximize": "no"},
        TypeError,
        ("maximize", "'no'"),
        "Pass True or False.",
    ),
)


#: What formulas are asked of: argument, text, keywords, error, what is said, remedy.
WRITTEN: tuple[tuple[str, str, dict[str, Any], type[Exception], tuple[str, ...], str], ...] = (
    (
        "what",
        "3",
        {"what": 3},
        TypeError,
        ("formula", "got 3"),
        "Pass an optimizer, its class, or a rule.",
    ),
    (
        "what",
        "LBFGS",
        {"what": steprule.LBFGS},
        ValueError,
        ("LBFGS", "no rule"),
        "Ask for an optimizer with a rule.",
    ),
    ("shape", "64", {"shape": 64}, TypeError, (), "Pass a tuple: (64,) for a vector."),
    ("shape", "(0, 2)", {"shape": (0, 2)}, ValueError, (), "Pass lengths of at least 1."),
    (
        "options",
        "nesterof",
        {"nesterof": True},
        TypeError,
        ("nesterof",),
        "Spell the option as the optimizer does.",
    ),
)


def cases() -> Iterator[Case]:
    for text, function, says, remedy in FUNCTIONS:
        yield Case(
            ABOUT,
            "rule",
            "function",
            text,
            lambda _, function=function: steprule.rule(function),
            TypeError,
            remedy,
            says,
        )
    for argument, text, value, error, remedy in DESCRIBED:
        keyword = "buffer" if argument == "slots" else argument
        yield Case(
            ABOUT,
            "rule",
            argument,
            text,
            lambda _, given={keyword: value}: steprule.rule(**given)(plain),
            error,
            remedy,
            ("plain", keyword, text),
        )
    for kind, table, fixed in ((Slot, SLOTS, {}), (Range, RANGES, {"high": 1})):
        for argument, text, value, error, remedy in table:
            yield Case(
                ABOUT,
                kind.__name__,
                argument,
                text,
                lambda _, kind=kind, given={**fixed, argument: value}: kind(**given),
                error,
                remedy,
                (kind.__name__, argument, text),
            )
    for argument, text, given, error, says, remedy in MADE:
        yield Case(
            ABOUT,
            "make_optimizer",
            argument,
            text,
            lambda _, given=given: steprule.make_optimizer(steprule.SGD.rule, **given),
            error,
            remedy,
            says,
        )
    yield Case(
        ABOUT,
        "make_optimizer",
        "rule",
        "3",
        lambda _: steprule.make_optimizer(3),
        TypeError,
        "Decorate the function with @steprule.rule first.",
    )
    for argument, text, given, error, says, remedy in WRITTEN:
        yield Case(
            ABOUT,
            "formula",
            argument,
            text,
            lambda _, given=given: steprule.formula(**{"what": steprule.SGD, **given}),
            error,
            remedy,
            says,
        )
