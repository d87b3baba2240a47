"""Tools beside optimizers: warm, plot_schedule, register_state_format, set_native_loops."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import steprule
from error_cases.case import Case
from error_cases.functions import bad_call
from steprule.formats.mini_floats import MiniFloat
from steprule.formats.stochastic import StochasticFloat
from steprule.schedules import constant

CALLS = (
    bad_call(
        "set_native_loops",
        "enabled",
        "'False'",
        lambda _: steprule.set_native_loops("False"),
        TypeError,
        "Pass True or False.",
    ),
    bad_call(
        "register_state_format",
        "name",
        "'int8'",
        lambda _: steprule.register_state_format("int8", StochasticFloat(torch.float8_e5m2)),
        ValueError,
        "Choose a name that is not taken.",
        ("'int8'", "known"),
    ),
    bad_call(
        "register_state_format",
        "signed",
        "a column of bfloat16 alone",
        lambda _: steprule.register_state_format("half", StochasticFloat(torch.bfloat16)),
        ValueError,
        "Give the format a column of its own, or a dtype that is not floating.",
        ("'half'", "bfloat16"),
    ),
    bad_call(
        "register_state_format",
        "unsigned",
        "a column of bfloat16 alone",
        lambda _: steprule.register_state_format(
            "half",
            MiniFloat(8, 4, True),
            StochasticFloat(torch.bfloat16),
        ),
        ValueError,
        "Give the format a column of its own, or a dtype that is not floating.",
        ("'half'", "bfloat16"),
    ),
    bad_call(
        "warm",
        "optimizers",
        "'adamm'",
        lambda _: steprule.warm("adamm"),
        ValueError,
        "Pass a name that the message lists, or a class.",
        ("optimizer", "'adamm'", "'adam'"),
    ),
    bad_call(
        "warm",
        "optimizers",
        "3",
        lambda _: steprule.warm(3),
        ValueError,
        "Pass names or classes.",
        ("optimizer", "3"),
    ),
    bad_call(
        "warm",
        "dtypes",
        "'float32'",
        lambda _: steprule.warm("sgd", dtypes="float32"),
        TypeError,
        "Pass a list: dtypes=['float32'].",
    ),
    bad_call(
        "warm",
        "dtypes",
        "['int8']",
        lambda _: steprule.warm("sgd", dtypes=["int8"]),
        ValueError,
        "Pass dtypes that the message lists.",
        ("dtype", "'int8'"),
    ),
    bad_call(
        "warm",
        "target",
        "'gpu'",
        lambda _: steprule.warm("sgd", target="gpu"),
        ValueError,
        "Name the card's compute capability: 'cuda:90'.",
    ),
    bad_call(
        "warm",
        "target",
        "90",
        lambda _: steprule.warm("sgd", target=90),
        TypeError,
        "Name the card's compute capability: 'cuda:90'.",
    ),
    bad_call(
        "warm",
        "options",
        "rho=1",
        lambda _: steprule.warm("sgd", rho=1),
        TypeError,
        "Pass options that each of the optimizers has.",
        ("option", "'rho'"),
    ),
    bad_call(
        "warm",
        "options",
        "lr='fast'",
        lambda _: steprule.warm("sgd", lr="fast"),
        TypeError,
        "Pass a number.",
        ("lr", "'fast'"),
    ),
    bad_call(
        "plot_schedule",
        "scheduler_or_schedule",
        "3",
        lambda _: steprule.plot_schedule(3, 9),
        TypeError,
        "Pass a schedule or a scheduler; for a number, constant(0.1).",
        ("schedule", "3"),
    ),
    bad_call(
        "plot_schedule",
        "steps",
        "'90'",
        lambda _: steprule.plot_schedule(constant(1), "90"),
        TypeError,
        "Pass a whole number.",
    ),
    bad_call(
        "plot_schedule",
        "steps",
        "0",
        lambda _: steprule.plot_schedule(constant(1), 0),
        ValueError,
        "Show at least one step.",
    ),
)


def cases() -> Iterator[Case]:
    yield from CALLS
