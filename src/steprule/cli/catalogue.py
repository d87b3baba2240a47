"""The optimizers as a page: formula, costs, use, defaults and source, read from the classes."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence

from steprule.cli.costs import StepCost, step_cost_of
from steprule.language.decay import has_shared_decay
from steprule.optimizer import Optimizer

_BORING = ("foreach", "fused", "capturable", "differentiable", "maximize", "engine")


def formula_of(cls: type[Optimizer]) -> str:
    """Return the update, as the class's docstring has it."""
    blocks = re.findall(r"::\n\n((?:[ ]{4,}.*\n|\n)+)", inspect.cleandoc(cls.__doc__ or "") + "\n")
    return "\n\n".join(textwrap.dedent(block).rstrip() for block in blocks)


def source_of(cls: type[Optimizer]) -> str:
    """Return where it was published: the docstring's Source, up to its first full sentence."""
    found = re.search(r"Source: (.*?)(?:\n\n|\Z)", inspect.cleandoc(cls.__doc__ or ""), re.S)
    return " ".join(found[1].split()) if found else ""


def use_of(cls: type[Optimizer]) -> str:
    """Return when to use it, as the class's docstring has it."""
    found = re.search(r"When to use: (.*?)(?:\n\n|\Z)", inspect.cleandoc(cls.__doc__ or ""), re.S)
    words = " ".join(found[1].split()) if found else ""
    return re.sub(r":(?:class|func|meth):`~?([^`]+)`", r"`\1`", words).replace("``", "`")


def defaults_of(cls: type[Optimizer]) -> dict[str, object]:
    """Return the constructor's options that have to do with the method, and their defaults."""
    return {
        p.name: p.default
        for p in inspect.signature(cls).parameters.values()
        if p.default is not p.empty and p.name not in _BORING
    }


def state_bytes_of(cls: type[Optimizer]) -> str:
    """Return the bytes of state for each float32 parameter, with the default options."""
    if cls.rule is None:
        return "see its page"
    options = {**cls.extras, **defaults_of(cls)}
    present = [s for s in cls.rule.slots.values() if s.is_present(options)]
    if any(s.shape in ("row", "column") for s in present):
        return "4 (rows + columns) / (rows * columns)"
    of_elements = str(sum(4 for s in present if s.shape == "param"))
    squares = sum(4 for s in present if s.shape == "left")
    if not squares:
        return of_elements
    return f"{of_elements} + {squares} (rows^2 + columns^2) / (rows * columns)"


def without_caution(classes: Mapping[str, type[Optimizer]]) -> list[str]:
    """Return the names of those that refuse ``cautious=True``."""
    return [c.__name__ for c in classes.values() if c.rule is None or c.rule.averages_param]


def without_decoupled_decay(classes: Mapping[str, type[Optimizer]]) -> list[str]:
    """Return the names of those whose weight decay can't be decoupled from the gradient."""
    return [
        cls.__name__
        for cls in classes.values()
        if cls.rule is None or not has_shared_decay(cls.rule, defaults_of(cls))
    ]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _cost_cells(cost: StepCost | None) -> tuple[str, str, str]:
    if cost is None:
        return "see its page", "", ""
    more = " and matrix products" if cost.has_matrix_operations else ""
    return f"{cost.operations}{more}", str(cost.moved_bytes), str(cost.passes)


def precise_slots_of(cls: type[Optimizer]) -> list[str]:
    """Return which slots formats of low precision leave alone, and why."""
    slots = cls.rule.slots if cls.rule is not None else {}
    return [
        f"`{name}`{f' with `{slot.precise_when}`' if slot.precise_when else ''}: "
        f"{slot.full_precision}"
        for name, slot in slots.items()
        if slot.full_precision
    ]


def markdown(classes: Mapping[str, type[Optimizer]]) -> str:
    """Return the page docs/optimizers.md."""
    lines = [
        "# The optimizers",
        "",
        "Each with its update, the bytes of state it keeps, what a step costs, when to use it, its",
        "defaults and its source. [Choosing an optimizer](choosing.md) says which to begin with.",
        "",
        *textwrap.wrap(
            "All but LBFGS take [guards](guards.md) as well: clipping, and steps that are not "
            "finite; and, SparseAdam excepted, [state in 8 or 4 bits](memory.md); slots that keep "
            "full precision there are named below. [Caution](terms.md) is for all but "
            f"{_listed(without_caution(classes))}. [Decoupled decay](terms.md) is for all but "
            f"{_listed(without_decoupled_decay(classes))}, which scale their decay themselves or "
            "have none.",
            100,
        ),
        "",
        "What a step costs for each element of a square float32 matrix, with default options, is",
        "counted in the recorded rule: operations (an addition, a product, a root is one), bytes",
        "read and written, and how often elements are read, where sums must be known before.",
        "On a CPU and on a GPU it is the bytes that take the time.",
        "",
        "`steprule formula NAME --text` prints an update as it is recorded, for any options; as",
        "LaTeX without `--text`. This page is written by `python -m steprule.cli.catalogue` from",
        "the classes; a test holds it to them.",
        "",
        "| optimizer | state, bytes | operations | bytes moved | readings |",
        "|---|---|---|---|---|",
    ]
    for cls in classes.values():
        cells = (f"[{cls.__name__}](#{cls.__name__.lower()})", state_bytes_of(cls))
        lines.append(f"| {' | '.join((*cells, *_cost_cells(step_cost_of(cls))))} |")
    for cls in classes.values():
        summary = inspect.cleandoc(cls.__doc__ or "").split("\n")[0]
        lines += ["", f"## {cls.__name__}", "", summary, ""]
        if formula_of(cls):
            lines += ["```text", formula_of(cls), "```", ""]
        lines += [f"When to use: {use_of(cls)}", ""]
        lines += [
            f"Defaults: `{', '.join(f'{k}={v!r}' for k, v in defaults_of(cls).items())}`.",
            "",
        ]
        if precise_slots_of(cls):
            lines += [f"Kept in full precision: {'; '.join(precise_slots_of(cls))}.", ""]
        lines.append(f"Source: {source_of(cls)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page."""
    import sys

    from steprule.rules import OPTIMIZERS

    sys.stdout.write(markdown(OPTIMIZERS))


if __name__ == "__main__":
    main()
