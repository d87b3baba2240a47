"""What an optimizer's page says of its options, state, cost, and of what it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from docs_build.mathematics import inline
from docs_build.optimizers import words
from docs_build.optimizers.update import shown
from steprule.cli.catalogue import defaults_of, precise_slots_of, state_bytes_of
from steprule.cli.costs import step_cost_of
from steprule.formulas import latex_of_symbol
from steprule.optimizer import Optimizer

_SHARED = (
    "And those of all optimizers: `maximize`, `differentiable`, `engine`, [guards](../guards.md), "
    "[formats](../memory.md), [averages and terms](../terms.md). Each may be another one in each "
    "group, and a number may be a [schedule](../schedules.md)."
)


def options(cls: type[Optimizer]) -> Iterator[str]:
    """Give the section on options."""
    yield from ("## Options", "")
    defaults = {**cls.extras, **defaults_of(cls)}
    yield from ("| option | default | meaning |", "|---|---|---|")
    said_of = words.options_of(cls)
    for name in dict.fromkeys((*defaults_of(cls), *said_of)):
        value = f"`{defaults[name]!r}`" if name in defaults else ""
        meaning = re.sub(r"(?<!\\)\|", r"\\|", words.sentence(said_of.get(name, "")))
        yield f"| `{name}` | {value} | {meaning} |"
    yield ""
    if cls.rule is not None:
        yield from (_SHARED, "")


def state_and_cost(name: str, cls: type[Optimizer]) -> Iterator[str]:
    """Give the section on state and cost."""
    yield from ("## State and cost", "")
    for section in ("State", "Groups", "Memory"):
        said = words.section_of(cls, section) or (_state(cls) if section == "State" else "")
        if said and section == "Groups":
            said = f"In groups: {said}"
        if said:
            yield from (_with_symbols(name, cls, words.sentence(said)), "")
    cost = step_cost_of(cls)
    yield from ("| | for each element of a float32 matrix |", "|---|---|")
    yield f"| bytes of state | {state_bytes_of(cls)} |"
    if cost is not None:
        products = " and matrix products" if cost.has_matrix_operations else ""
        yield f"| operations | {cost.operations}{products} |"
        yield f"| bytes read and written | {cost.moved_bytes} |"
        yield f"| times that elements are read | {cost.passes} |"
    yield ""
    if cost is not None:
        yield (
            "Counted in the recorded rule with default options, of a square matrix. The keys of "
            "the state dict are the names above; [formats](../memory.md) store them in fewer bytes."
        )
        yield ""
    if precise_slots_of(cls):
        yield f"Not stored in fewer bytes: {'; '.join(precise_slots_of(cls))}."
        yield ""


def _state(cls: type[Optimizer]) -> str:
    """Return the names of the state, read off the rule, with letters to be replaced."""
    if cls.rule is None:
        return ""
    names = ["`step` (t)"] * cls.rule.counts_steps
    for name, slot in cls.rule.slots.items():
        names.append(f"`{name}` (x)" + (f" with `{slot.when}`" if slot.when else ""))
    return f"{', '.join(names)}."


def _with_symbols(name: str, cls: type[Optimizer], said: str) -> str:
    """Return what is said of state with the formula's symbols in place of the docstring's."""
    if cls.rule is None:
        return said
    symbols = {
        slot: inline(latex_of_symbol(symbol.letter))
        for _, formula in shown(name, cls)
        for slot, symbol in formula.inputs.items()
    }

    def turned(found: re.Match[str]) -> str:
        names = re.findall(r"\w+", found[1])
        if not all(one in symbols for one in names):
            return found[0]
        return f"{found[1]} ({' and '.join(symbols[one] for one in names)})"

    letter = r"[A-Za-z]\w?"
    return re.sub(rf"(`\w+`(?:, `\w+`)?) \({letter}(?: and {letter})?\)", turned, said)


# What an optimizer may or may not take, and the options that ask for it.
_TERMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("[cautious updates](../terms.md)", {"cautious": True}),
    ("[running averages](../checkpoints.md)", {"ema_decay": 0.99}),
    ("[clipping in the step](../guards.md)", {"clip_grad_norm": 1.0}),
    ("[state in 8 or 4 bits](../memory.md)", {"state_format": "int8"}),
)


def takes(cls: type[Optimizer]) -> Iterator[str]:
    """Give the section on what it takes, and what it refuses."""
    if cls.rule is None:
        return
    decay = _decay(cls)
    taken, refused = ([decay], []) if decay else ([], ["weight decay"])
    for term, given in _TERMS:
        (taken if _is_taken(cls, given) else refused).append(term)
    sparse = {"rows": taken, "only": taken, "refused": refused}[cls.rule.sparse]
    sparse.append("sparse gradients" + (" (only)" if cls.rule.sparse == "only" else ""))
    (taken if cls.rule.takes_complex else refused).append("complex parameters")
    yield from ("## What it takes", "", f"Takes {', '.join(taken)}.")
    if refused:
        yield f"Does not take {', '.join(refused)}; it says so where they are asked for."
    yield ""


def _decay(cls: type[Optimizer]) -> str:
    """Return in which form it takes weight decay; "" if in none."""
    assert cls.rule is not None
    if "weight_decay" in cls.rule.needs:
        return "weight decay as its formula has it"
    if not _is_taken(cls, {"weight_decay": 0.1}):
        return ""
    if "decoupled_weight_decay" in getattr(cls, "fixed", {}):
        return "[decoupled weight decay](../terms.md)"
    usual = "decoupled" if cls.rule.decoupled else "in L2 form"
    other = "in L2 form" if cls.rule.decoupled else "decoupled"
    switch = f"`decoupled_weight_decay={not cls.rule.decoupled}`"
    is_choice = _is_taken(
        cls, {"weight_decay": 0.1, "decoupled_weight_decay": not cls.rule.decoupled}
    )
    return f"weight decay {usual}" + (f" or [{other}](../terms.md) ({switch})" * is_choice)


def _is_taken(cls: type[Optimizer], given: Mapping[str, Any]) -> bool:
    param = torch.zeros(4, 4, requires_grad=True)
    make: Any = cls
    try:
        make([param], **given)
    except (TypeError, ValueError):
        return False
    return True


def see_also(name: str, cls: type[Optimizer]) -> Iterator[str]:
    """Give the section with links."""
    yield from ("## See also", "")
    links = {
        "muon": ["[Matrices and Muon](../matrices.md)"],
        "shampoo": ["[Matrices](../matrices.md)"],
        "soap": ["[Matrices](../matrices.md)"],
        "lbfgs": ["[LBFGS](../lbfgs.md)"],
    }.get(name, [])
    if hasattr(torch.optim, cls.__name__):
        links += ["[Differences from torch](../compatibility.md)"]
    links += [
        "[All optimizers side by side](../optimizers.md)",
        "[state dicts and checkpoints](../checkpoints.md)",
        "[error messages](../errors.md)",
        "[rules of your own](../writing-rules.md)",
    ]
    yield ", ".join(links) + "."
