"""Options of every optimizer in the registry: derived from its constructor and its rule."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

from error_cases import values
from error_cases.case import Case
from error_cases.values import Bad
from steprule.optimizer import SHARED
from steprule.rules import OPTIMIZERS

NUMBER, PAIR, INTEGER = "numbers", "pairs of numbers", "integers"
FLAG, WORD = "options that are on or off", "words"
#: Of each kind, the optimizer that stands for all on the page.
EXAMPLE = "Adam"
EMPTY = inspect.Parameter.empty
#: Options that are words, the others of their kind being found by their defaults.
WORDS = (
    "adjust_lr_fn",
    "engine",
    "on_nonfinite",
    "clip_grad_norm_over",
    "state_format",
    "param_rounding",
)
#: Options that are integers: for what they mean, a fraction is no less wrong than text.
INTEGERS = (
    "ns_steps",
    "state_format_min_size",
    "rounding_seed",
    "precondition_frequency",
    "start_preconditioning_step",
    "max_precond_dim",
    "max_preconditioner_dim",
)
#: Running averages have cases of their own.
ELSEWHERE = ("ema_decay", "ema_format")
#: LBFGS has cases of its own (lbfgs.py).
WITH_RULE = [cls for cls in OPTIMIZERS.values() if cls.rule is not None]


def params() -> list[torch.Tensor]:
    """Parameters that every optimizer takes."""
    return [torch.ones(2, 2, requires_grad=True)]


def options_of(cls: Any) -> dict[str, Any]:
    """What a constructor takes beside the parameters, and its defaults; guards included."""
    found = {
        p.name: p.default
        for p in inspect.signature(cls).parameters.values()
        if p.name != "params" and p.kind is not p.VAR_KEYWORD
    }
    known = {*found, *getattr(cls, "fixed", ())}
    return {**found, **{k: v for k, v in SHARED.items() if k not in known}}


def kind_of(cls: Any, name: str, default: Any) -> str | None:
    """What an option takes; None for one with cases of its own."""
    if name in ELSEWHERE:
        return None
    if (
        name in WORDS
        or name == "adjust_lr_fn"
        or (isinstance(default, str) and name not in cls.rule.options)
    ):
        return WORD
    if name in cls.rule.parts:
        return PAIR
    if name in ("foreach", "fused") or isinstance(default, bool):
        return FLAG
    if name in INTEGERS:
        return INTEGER
    is_bound = name == "peak_lr" or name.startswith("clip_grad_")
    is_number = isinstance(default, (int, float)) or is_bound
    return NUMBER if is_number or name in cls.rule.options else None


def call_of(cls: Any, name: str, value: Any) -> Any:
    return lambda given: cls(given, **{name: value})


def cases() -> Iterator[Case]:
    shown: set[tuple[str, str]] = set()
    for cls in sorted(WITH_RULE, key=lambda cls: cls.__name__ != EXAMPLE):
        for name, default in options_of(cls).items():
            kind = kind_of(cls, name, default)
            for bad in BAD.get(str(kind), ()):
                if is_taken(cls, name, bad):
                    continue
                yield Case(
                    about=f"Options of optimizers: {kind}",
                    where=cls.__name__,
                    argument=name,
                    given=bad.text,
                    call=call_of(cls, name, bad.value),
                    error=bad.error,
                    remedy=bad.remedy,
                    says=says(name, bad),
                    subject=params,
                    is_shown=(kind, bad.text) not in shown,
                )
                shown.add((str(kind), bad.text))
        yield from of_groups(cls)
    yield third_beta()
    yield exponent_of_roots()
    yield from what_was_meant()
    yield no_such_option()


def of_groups(cls: Any) -> Iterator[Case]:
    """One bad value for each option, in the second of two groups: the message says which."""
    for name, default in options_of(cls).items():
        kind = kind_of(cls, name, default)
        if name == "engine" or kind is None:
            continue
        bad = BAD[kind][-1]
        yield Case(
            about=f"Options of optimizers: {kind}",
            where=cls.__name__,
            argument=f"params[1]['{name}']",
            given=bad.text,
            call=in_second_group(cls, name, bad.value),
            error=bad.error,
            remedy=bad.remedy,
            says=("group 1", *says(name, bad)),
            subject=params,
            is_shown=cls.__name__ == EXAMPLE and name == "lr",
        )


def in_second_group(cls: Any, name: str, value: Any) -> Any:
    return lambda given: cls([{"params": given}, {"params": params(), name: value}])


def what_was_meant() -> Iterator[Case]:
    """Names and values that people try who come from papers or from other libraries."""

    def half(step: int) -> float:
        return 0.5**step

    rows = (
        ("learning_rate", "1", 1, ("'learning_rate'", "did you mean 'lr'?"), "Write lr=1."),
        ("lr", "'cosine'", "cosine", ("'cosine'", "schedules.cosine("), "Pass cosine(...)."),
        ("lr", "lambda step: ...", half, ("LambdaLR",), "Give it to lr_scheduler.LambdaLR."),
    )
    for name, text, value, said, remedy in rows:
        yield Case(
            about=f"Options of optimizers: {NUMBER}",
            where="AdamW",
            argument=name,
            given=text,
            call=call_of(OPTIMIZERS["adamw"], name, value),
            error=TypeError,
            remedy=remedy,
            says=(name, *said),
            subject=params,
            is_shown=not callable(value),  # its message has an address
        )


def no_such_option() -> Case:
    """Rprop has no weight decay, and nothing that it could be a misspelling of."""
    return Case(
        f"Options of optimizers: {NUMBER}",
        "Rprop",
        "weight_decay",
        "0.1",
        call_of(OPTIMIZERS["rprop"], "weight_decay", 0.1),
        TypeError,
        "Leave it out: the method has none.",
        ("argument 'weight_decay'",),
        params,
    )


def third_beta() -> Case:
    """Prodigy's third beta, which joins the others."""
    return Case(
        f"Options of optimizers: {PAIR}",
        "Prodigy",
        "beta3",
        "'0.9'",
        call_of(OPTIMIZERS["prodigy"], "beta3", "0.9"),
        TypeError,
        "Pass a number, or None for the square root of beta2.",
        ("betas[2]", "'0.9'"),
        params,
    )


def exponent_of_roots() -> Case:
    """Shampoo's exponent, which is a number or None."""
    return Case(
        f"Options of optimizers: {NUMBER}",
        "Shampoo",
        "exponent",
        "'1/4'",
        call_of(OPTIMIZERS["shampoo"], "exponent", "1/4"),
        TypeError,
        "Pass a number, or None for what follows from how many sides have roots.",
        ("exponent", "'1/4'"),
        params,
    )


def says(name: str, bad: Bad) -> tuple[str, str]:
    """What a message must contain: for one of torch's, the option in other words."""
    if name == "adjust_lr_fn":
        return "Adjust learning rate function", bad.text.strip("'")
    return name, bad.expected


def is_taken(cls: Any, name: str, bad: Bad) -> bool:
    """Whether a value that is bad for others of its kind is good here."""
    return bad.text == "nan" and name in cls.rule.optional


BAD: dict[str, tuple[Bad, ...]] = {
    NUMBER: values.NUMBERS,
    FLAG: values.FLAGS,
    WORD: values.WORDS,
    INTEGER: (
        Bad("'5'", "5", TypeError, "Pass an integer."),
        Bad("2.5", 2.5, TypeError, "Pass an integer."),
        Bad("True", True, TypeError, "Pass an integer."),
    ),
    PAIR: (
        Bad("0.9", 0.9, TypeError, "Pass a tuple with as many numbers as the message names."),
        Bad("(0.9,)", (0.9,), TypeError, "Pass as many numbers as the message names."),
        Bad("'ab'", "ab", TypeError, "Pass a tuple of numbers."),
        Bad("None", None, TypeError, "Leave the option out for its default."),
    ),
}
