"""What a rule's slots and options may be called.

A slot's name is a key of the state, an option's one of a group; both are keyword arguments on the
way. Names that mean something there already are refused when the rule is made, for later they
would be taken for that. What kernels call things is no matter: their text has names of its own.
"""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

# Keyword arguments that the planner supplies; all others are options of the optimizer.
SUPPLIED = ("step", "first", "machine_eps", "rows", "columns")

# Numbers and slots that a form may have beside the rule's own.
_OF_FORMS = ("clip_factor", "grad_scale", "rounding_step", "param_ema", "ema_decay")
# What else stands in a group, or says what is done with it.
_OF_GROUPS = (
    "params",
    "param_names",
    "optimizer",
    "schedules",
    "schedule_step",
    "initial_lr",
    "engine",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "maximize",
    "decoupled_weight_decay",
    "cautious",
    "cautious_weight_decay",
    "peak_lr",
    "ema_format",
)
# Numbers of every group, which a rule may ask for itself: but then as numbers.
_NUMBERS_OF_GROUPS = ("lr", "weight_decay", "clip_grad_norm", "clip_grad_value", "rounding_seed")
_WORDS_OF_GROUPS = ("clip_grad_norm_over", "on_nonfinite", "state_format", "param_rounding")


def check_names(
    rule: str,
    slots: Iterable[str],
    numbers: Iterable[str],
    flags: Iterable[str],
    parts: Mapping[str, Iterable[str]],
) -> None:
    """Refuse names that are none, or that mean something else already.

    Args:
        rule: the rule's name, for the message.
        slots: the names of its slots.
        numbers: those of the numbers that it takes.
        flags: those of its flags.
        parts: the options that are tuples, and what their entries are called.

    Raises:
        ValueError: naming one.
    """
    numbers = list(numbers)
    entries = [name for names in parts.values() for name in names]
    of_groups = (*_OF_FORMS, *_OF_GROUPS)
    taken = {
        "slot": (*SUPPLIED, *_OF_FORMS, *_NUMBERS_OF_GROUPS),
        "number": (*of_groups, *_WORDS_OF_GROUPS, *parts),
        "flag": (*SUPPLIED, *of_groups, *_NUMBERS_OF_GROUPS, *_WORDS_OF_GROUPS, *parts, *entries),
        "option": (*SUPPLIED, *of_groups, *_NUMBERS_OF_GROUPS, *_WORDS_OF_GROUPS),
        "part of an option": (*SUPPLIED, *of_groups, *_WORDS_OF_GROUPS, *parts),
    }
    of_kind = {
        "slot": slots,
        "number": [name for name in numbers if name not in SUPPLIED],
        "flag": flags,
        "option": parts,
        "part of an option": entries,
    }
    for kind, names in of_kind.items():
        for name in names:
            reason = "it has another meaning already" if name in taken[kind] else _why_no_name(name)
            if reason:
                raise ValueError(f"rule {rule}: no {kind} can be called {name!r}: {reason}")


def _why_no_name(name: Any) -> str:
    if not isinstance(name, str) or not str.isidentifier(name) or keyword.iskeyword(name):
        return "it is no identifier"
    if name.startswith("_"):
        return "names that begin with an underscore are ours"
    if unicodedata.normalize("NFKC", name) != name:
        return f"Python writes it {unicodedata.normalize('NFKC', name)!r}"
    return ""
