"""A page for each optimizer: its formula read off the recorded rule, what it costs, its path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import torch

from docs_build.mathematics import aligned, inline, source
from docs_build.optimizer_examples import example_of
from docs_build.pictures.kept import pictures_of
from docs_build.pictures.paths import OPTIONS, RATES, REMARKS
from docs_build.pictures.surfaces import SURFACES
from steprule.cli.catalogue import (
    defaults_of,
    precise_slots_of,
    source_of,
    state_bytes_of,
)
from steprule.cli.costs import step_cost_of
from steprule.formulas import Formula, formulas, latex_lines, latex_of_symbol
from steprule.optimizer import Optimizer
from steprule.rules import OPTIMIZERS

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
_SUPPLIED = {
    "param": "the parameter",
    "grad": "its gradient",
    "step": "the number of the step, 1 at the first",
    "machine_eps": "the machine epsilon of the parameter's dtype",
    "rows": "the length of the parameter's first axis",
    "columns": "that of all others together",
}
_FUNCTIONS = {
    "NewtonSchulz": "NewtonSchulz draws the singular values of a matrix towards 1, by so many "
    "iterations with the coefficients `ns_coefficients` ([matrices](../matrices.md)).",
    "RMS": "RMS(x) is the root of the mean of x².",
    "clip": "clip(x, a, b) is x, but no less than a and no more than b.",
    "\\text{all}": "What is marked “all” is taken over all parameters of the optimizer.",
    "\\mid": "a | t says that a divides t.",
    "eigenvectors": "eigenvectors(A) has those of a symmetric matrix as columns; QR(A) is the "
    "orthogonal factor of A = QR.",
    "\\text{row}": "A mean marked “row” is one number for each row; “column”, for each column.",
    "lVert": "‖x‖ is the 2-norm of all elements, ‖x‖₁ the sum of their absolute values.",
}
_LBFGS = [
    r"s_t &= \theta_t - \theta_{t-1}",
    r"y_t &= g_t - g_{t-1}",
    r"H_t &= \left(I - \frac{s_t y_t^\top}{y_t^\top s_t}\right) H_{t-1} "
    r"\left(I - \frac{y_t s_t^\top}{y_t^\top s_t}\right) + \frac{s_t s_t^\top}{y_t^\top s_t}",
    r"\theta_{t+1} &= \theta_t - \gamma H_t g_t",
]
_ROLE = re.compile(r":(class|func|meth|mod|attr|data|exc):`~?([^`]+)`")


def files() -> dict[str, str | bytes]:
    """Return the pages and their pictures."""
    made: dict[str, str | bytes] = {}
    for name, cls in OPTIMIZERS.items():
        made[f"optimizers/{name}.md"] = "\n".join(_page(name, cls)).rstrip() + "\n"
        for surface, kept in pictures_of(name).items():
            made[f"optimizers/{name}_{surface}.svg"] = kept[0]
    return made


def _page(name: str, cls: type[Optimizer]) -> Iterator[str]:
    summary, *more = _remarks(cls)
    yield from (f"# {cls.__name__}", "", _text(summary), "")
    yield from _update(name, cls)
    for paragraph in more:
        yield from (_text(paragraph), "")
    use = _section(cls, "When to use")
    yield from ("## When to use it", "", _text(use[:1].upper() + use[1:]), "")
    yield from ("## Example", "", "```python", example_of(name), "```", "")
    yield from _path(name, cls)
    yield from _options(cls)
    yield from _state_and_cost(cls)
    yield from _takes(cls)
    yield from ("## Source", "", _text(source_of(cls)), "")
    yield from _see_also(name, cls)


def _update(name: str, cls: type[Optimizer]) -> Iterator[str]:
    yield from ("## Update", "")
    if cls.rule is None:
        yield from (aligned(_LBFGS), "", source(_LBFGS), "")
        yield from (
            "LBFGS is no rule of elements, so these lines are written by hand, where those of",
            "other optimizers are read off what runs. g is the gradient of all parameters as one",
            "vector. H is never formed: its product with g is computed from the last",
            "`history_size` pairs s, y, beginning with the scaled identity. The factor before it",
            "is `lr`, or what the line search finds ([its own page](../lbfgs.md)).",
            "",
        )
        return
    (found,) = formulas(cls)
    lines = latex_lines(found)
    yield from (aligned(lines), "", source(lines), "")
    seen = {"\n".join(lines)}
    shown = [found]
    decays = {"weight_decay": 1e-2} if defaults_of(cls).get("weight_decay") == 0 else {}
    for options in VARIANTS.get(name, (decays,) if decays else ()):
        (variant,) = formulas(cls, **options)
        yield from _variant(", ".join(f"{k}={v!r}" for k, v in options.items()), variant, seen)
        shown.append(variant)
    if any(slot.shape in ("vector", "left") for slot in cls.rule.slots.values()):
        (variant,) = formulas(cls, shape=(64,))
        yield from _variant("", variant, seen)
        shown.append(variant)
    yield from (
        "The lines are read off the recorded rule that every engine runs, and stand in the order",
        "in which they are computed. Products, quotients and roots of arrays are taken element by",
        "element. Terms that an option's default of 0 takes away are left out. `steprule.formula`",
        "returns them for any options, and for rules of your own.",
        "",
    )
    yield from _symbols(cls, shown)


def _variant(options: str, variant: Formula, seen: set[str]) -> Iterator[str]:
    lines = latex_lines(variant)
    if "\n".join(lines) in seen:
        return
    seen.add("\n".join(lines))
    title = f"With <code>{escape(options)}</code>" if options else "Of a vector"
    yield f"<details><summary>{title}</summary>{aligned(lines)}{source(lines)}</details>"
    yield ""


def _symbols(cls: type[Optimizer], shown: list[Formula]) -> Iterator[str]:
    """Say what each symbol is that is not defined by a line."""
    text = "".join("\n".join(latex_lines(one)) for one in shown)
    rows: dict[str, str] = {}
    for one in shown:
        written = " ".join(latex_lines(one))
        for name, symbol in one.inputs.items():
            latex = latex_of_symbol(symbol)
            if latex in written or latex_of_symbol(symbol.at("t")) in written:
                rows.setdefault(inline(latex), _meaning(cls, name))
    yield from ("| symbol | is |", "|---|---|")
    for symbol_text, meaning in rows.items():
        yield f"| {symbol_text} | {meaning} |"
    yield ""
    notes = [note for word, note in _FUNCTIONS.items() if word in text]
    yield from (f"- {note}" for note in notes)
    yield ""


def _meaning(cls: type[Optimizer], name: str) -> str:
    rule = cls.rule
    assert rule is not None
    defaults = {**cls.extras, **defaults_of(cls)}
    if name in rule.slots:
        slot = rule.slots[name]
        if name == "momentum_buffer" and rule.name == "sgd":
            return "state `momentum_buffer`, the first gradient at first"
        start = f"`{slot.init}`" if isinstance(slot.init, str) else f"{slot.init:g}"
        shape = {"scalar": ", one number", "left": ", a matrix", "right": ", a matrix"}
        what = shape.get(slot.shape, "")
        if slot.shape in ("left", "right") and slot.init == 1:
            start = "the identity"
        return f"state `{name}`{what}, {start} at first"
    if name in _SUPPLIED:
        return _SUPPLIED[name]
    if name == "param_ema":
        return "state `param_ema`, the running average"
    for option, parts in rule.parts.items():
        if name in parts:
            place = parts.index(name)
            value = defaults.get(option)
            given = f", {value[place]!r}" if isinstance(value, tuple) and place < len(value) else ""
            return f"option `{option}[{place}]`{given}"
    value = defaults.get(name)
    return f"option `{name}`" + (f", {value!r}" if name in defaults else "")


def _path(name: str, cls: type[Optimizer]) -> Iterator[str]:
    yield from ("## Its path", "")
    yield '<div style="display: flex; flex-wrap: wrap; gap: 1rem">'
    for surface in SURFACES:
        _, lr, tried, value, steps = pictures_of(name)[surface.key]
        alt = (
            f"Path of {cls.__name__} on {surface.title} from {surface.start}: after {steps} steps "
            f"with lr={lr:g} the value is {value:.2g}."
        )
        # An address as it is in a page of HTML, which is in the same folder as its picture.
        yield (
            '<figure style="flex: 1 1 13rem; max-width: 24rem; margin: 0">'
            f'<img src="{name}_{surface.key}.svg" alt="{escape(alt)}" width="480" height="380" '
            'style="width: 100%; height: auto">'
            '<figcaption style="max-width: none; margin: 0.4em 0">'
            f"{surface.title}, {steps} steps with lr = {lr:g}; value at the end "
            f"{value:.2g}.</figcaption></figure>"
        )
    yield from ("</div>", "")
    tried = pictures_of(name)["rosenbrock"][2]
    found = (
        f"lr is the best of {tried} from {RATES[0]:g} to {RATES[-1]:g}, a range that is the same "
        "for all optimizers: the lowest value over the last 10 steps, among those whose path stays "
        "in the picture. "
        if tried > 1
        else ""
    )
    given = ", ".join(f"`{k}={v!r}`" for k, v in OPTIONS.get(name, {}).items())
    others = f"Other options are the defaults, but for {given}. " if given else ""
    yield (
        "From the ring to the cross, where the value is 0; a dot every few steps. "
        f"{found}{others}{REMARKS.get(name, '')} Two numbers without noise tell how an optimizer "
        "moves, not how it trains a network ([choosing one](../choosing.md))."
    )
    yield ""


def _options(cls: type[Optimizer]) -> Iterator[str]:
    yield from ("## Options", "")
    defaults = {**cls.extras, **defaults_of(cls)}
    yield from ("| option | default | meaning |", "|---|---|---|")
    said_of = _arguments(cls)
    for name in dict.fromkeys((*defaults_of(cls), *said_of)):
        if name != "params":
            words = said_of.get(name) or _said_elsewhere(cls, name)
            value = f"`{defaults[name]!r}`" if name in defaults else ""
            said = re.sub(r" \(default [^():;]*(\([^()]*\))?\)", "", words)
            yield f"| `{name}` | {value} | {_cell(said)} |"
    yield ""
    if cls.rule is not None:
        yield (
            "And those of all optimizers: `maximize`, `differentiable`, `engine`, "
            "[guards](../guards.md), [formats](../memory.md), [averages and terms](../terms.md). "
            "Each may be another one in each group, and a number may be a "
            "[schedule](../schedules.md)."
        )
        yield ""


def _state_and_cost(cls: type[Optimizer]) -> Iterator[str]:
    yield from ("## State and cost", "")
    state = _section(cls, "State") or _state(cls)
    if state:
        yield from (_text(state), "")
    cost = step_cost_of(cls)
    yield from ("| | for each element of a float32 matrix |", "|---|---|")
    yield f"| bytes of state | {state_bytes_of(cls)} |".replace("**", "^")
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
        yield f"Kept in full precision by these: {'; '.join(precise_slots_of(cls))}."
        yield ""


def _state(cls: type[Optimizer]) -> str:
    """Return the names of the state that the default options keep."""
    if cls.rule is None:
        return ""
    options = {**cls.extras, **defaults_of(cls)}
    names = [name for name, slot in cls.rule.slots.items() if slot.is_present(options)]
    return ", ".join(f"`{name}`" for name in (["step"] * cls.rule.counts_steps + names)) + "."


# What an optimizer may or may not take, and the options that ask for it.
_TERMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("weight decay in L2 form", {"weight_decay": 0.1, "decoupled_weight_decay": False}),
    ("decoupled weight decay", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("[cautious updates](../terms.md)", {"cautious": True}),
    ("[running averages](../checkpoints.md)", {"ema_decay": 0.99}),
    ("[clipping in the step](../guards.md)", {"clip_grad_norm": 1.0}),
    ("[state in 8 or 4 bits](../memory.md)", {"state_format": "int8"}),
)


def _takes(cls: type[Optimizer]) -> Iterator[str]:
    if cls.rule is None:
        return
    taken: list[str] = []
    refused: list[str] = []
    terms = _TERMS
    if "weight_decay" in cls.rule.needs:
        taken.append("weight decay as its formula has it")
        terms = _TERMS[2:]
    for words, options in terms:
        (taken if _is_taken(cls, options) else refused).append(words)
    sparse = {"rows": taken, "only": taken, "refused": refused}[cls.rule.sparse]
    sparse.append("sparse gradients" + (" (only)" if cls.rule.sparse == "only" else ""))
    (taken if cls.rule.takes_complex else refused).append("complex parameters")
    yield from ("## What it takes", "", f"Takes {', '.join(taken)}.")
    if refused:
        yield f"Does not take {', '.join(refused)}; it says so where they are asked for."
    yield ""


def _is_taken(cls: type[Optimizer], options: Mapping[str, Any]) -> bool:
    param = torch.zeros(4, 4, requires_grad=True)
    make: Any = cls
    try:
        make([param], **options)
    except (TypeError, ValueError):
        return False
    return True


def _see_also(name: str, cls: type[Optimizer]) -> Iterator[str]:
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


# The docstring.


def _remarks(cls: type[Optimizer]) -> list[str]:
    """Return the summary and the paragraphs before the arguments, without formulas as code."""
    text = inspect.cleandoc(cls.__doc__ or "")
    before = re.split(r"^Args:$", text, maxsplit=1, flags=re.M)[0]
    if cls.rule is None:
        before = before.split("\n\n")[0]
    paragraphs = [p for p in before.split("\n\n") if p.strip() and not p.startswith("    ")]
    return [
        " ".join(p.split())
        for p in paragraphs
        if not p.rstrip().endswith("::") and not p[:1].islower()
    ]


def _section(cls: type[Optimizer], name: str) -> str:
    text = inspect.cleandoc(cls.__doc__ or "")
    found = re.search(rf"^{name}(?:, [^:\n]*)?: (.*?)(?:\n\n|\Z)", text, re.S | re.M)
    return " ".join(found[1].split()) if found else ""


def _arguments(cls: type[Optimizer]) -> dict[str, str]:
    """Return what the docstring says of each argument."""
    text = inspect.cleandoc(cls.__doc__ or "")
    found = re.search(r"^Args:\n((?:(?:    .*)?\n)+)", text + "\n", re.M)
    items: dict[str, str] = {}
    last = ""
    for line in inspect.cleandoc(found[1]).splitlines() if found else ():
        named = re.match(r"(\w+(?:, \w+)*): (.*)", line)
        if named:
            last = named[1]
            items[last] = named[2]
        elif last:
            items[last] += f" {line.strip()}"
    return items


def _said_elsewhere(cls: type[Optimizer], option: str) -> str:
    """Return what is said of an option by the optimizers that a docstring points to."""
    for name in re.findall(r":class:`~?([^`]+)`", cls.__doc__ or ""):
        other = OPTIMIZERS.get(name.rpartition(".")[2].lower())
        if other is not None and option in _arguments(other):
            return _arguments(other)[option]
    return ""


def _text(words: str) -> str:
    """Return words of a docstring as Markdown of an optimizer's page."""

    def linked(found: re.Match[str]) -> str:
        shown = found[2].rpartition(".")[2] if "~" in found[0] else found[2]
        name = found[2].rpartition(".")[2].lower()
        if found[1] == "class" and name in OPTIMIZERS:
            return f"[`{shown}`]({name}.md)"
        return f"`{shown}`"

    words = _ROLE.sub(linked, words).replace("``", "`")
    pieces = re.split(r"(`[^`]*`)", words)
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(r"([*_|<])", r"\\\1", pieces[i])
    return "".join(pieces)


def _cell(words: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", _text(words))
