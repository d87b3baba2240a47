"""LBFGS, whose options are its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from error_cases import values
from error_cases.case import Case
from error_cases.optimizers import call_of, params
from steprule import LBFGS

ABOUT = "LBFGS"
NUMBER = "Pass a number."
COUNT = "Pass a whole number."
#: Each option with bad values: text, value, error, what the message says beside the option.
OPTIONS: dict[str, tuple[tuple[str, Any, type[Exception], str, str], ...]] = {
    "max_iter": (
        ("'20'", "20", TypeError, "'20'", COUNT),
        ("-1", -1, ValueError, "-1", "Pass 0 or more."),
    ),
    "max_eval": (
        ("True", True, TypeError, "True", COUNT),
        ("-1", -1, ValueError, "-1", "Pass 0 or more, or None for max_iter * 5 // 4."),
    ),
    "tolerance_grad": (
        ("'1e-5'", "1e-5", TypeError, "'1e-5'", NUMBER),
        ("nan", math.nan, ValueError, "nan", "Pass a number; a negative one is never reached."),
    ),
    "tolerance_change": (
        ("'1e-9'", "1e-9", TypeError, "'1e-9'", NUMBER),
        ("nan", math.nan, ValueError, "nan", "Pass a number; 0 goes on until the gradient is 0."),
    ),
    "history_size": (
        ("0", 0, ValueError, "0", "Keep at least one pair."),
        ("2.5", 2.5, TypeError, "2.5", COUNT),
        ("None", None, TypeError, "None", COUNT),
    ),
    "line_search_fn": (
        ("'armijo'", "armijo", ValueError, "'armijo'", "Pass a name that the message lists."),
        ("[]", [], TypeError, "[]", "Pass the name of a search, or None for fixed steps."),
    ),
    "bounds": (
        ("3", 3, ValueError, "3", "Pass a pair; None in it means no bound on that side."),
        ("('a', 'b')", ("a", "b"), TypeError, "('a', 'b')", "Pass a pair of numbers."),
        ("(1, 0)", (1, 0), ValueError, "(1, 0)", "Swap them."),
    ),
    "history_dtype": (
        ("torch.float16", torch.float16, ValueError, "float16", "Take bfloat16."),
        ("3", 3, ValueError, "3", "Pass one of the dtypes that the message lists."),
    ),
}


def cases() -> Iterator[Case]:
    for option, bad in OPTIONS.items():
        for text, value, error, said, remedy in bad:
            yield Case(
                ABOUT,
                "LBFGS",
                option,
                text,
                call_of(LBFGS, option, value),
                error,
                remedy,
                (option, said),
                params,
            )
    for option in ("maximize", "strict_max_eval"):
        for one in values.FLAGS:
            yield Case(
                ABOUT,
                "LBFGS",
                option,
                one.text,
                call_of(LBFGS, option, one.value),
                one.error,
                one.remedy,
                subject=params,
                is_shown=False,
            )
    for one in values.NUMBERS:
        yield Case(
            ABOUT,
            "LBFGS",
            "lr",
            one.text,
            call_of(LBFGS, "lr", one.value),
            one.error,
            one.remedy,
            ("lr", one.expected),
            params,
            is_shown=False,
        )
    yield Case(
        ABOUT,
        "LBFGS",
        "params",
        "two groups that differ in max_iter",
        lambda given: LBFGS([{"params": given}, {"params": params(), "max_iter": 3}]),
        ValueError,
        "Give options of the whole problem to the constructor, not to a group.",
        ("group 1", "max_iter", "3"),
        params,
    )
