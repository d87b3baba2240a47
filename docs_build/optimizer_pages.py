"""A page for each optimizer: its formula read off the recorded rule, what it costs, its path."""

from __future__ import annotations

from collections.abc import Iterator

from docs_build.optimizer_examples import example_of
from docs_build.optimizers import facts, words
from docs_build.optimizers.path import path
from docs_build.optimizers.update import update
from docs_build.pictures.kept import pictures_of
from steprule.optimizer import Optimizer
from steprule.rules import OPTIMIZERS


def files() -> dict[str, str | bytes]:
    """Return the pages and their pictures."""
    made: dict[str, str | bytes] = {}
    for name, cls in OPTIMIZERS.items():
        made[f"optimizers/{name}.md"] = "\n".join(_page(name, cls)).rstrip() + "\n"
        for surface, kept in pictures_of(name).items():
            made[f"optimizers/{name}_{surface}.svg"] = kept[0]
    return made


def _page(name: str, cls: type[Optimizer]) -> Iterator[str]:
    yield from (f"# {cls.__name__}", "", words.summary_of(cls), "")
    yield from update(name, cls)
    for remark in words.remarks_of(cls):
        yield from (remark, "")
    use = words.sentence(words.section_of(cls, "When to use"))
    yield from ("## When to use it", "", use, "")
    yield from ("## Example", "", "```python", example_of(name), "```", "")
    yield from path(name, cls, pictures_of(name))
    yield from facts.options(cls)
    yield from facts.state_and_cost(name, cls)
    yield from facts.takes(cls)
    yield from ("## Source", "", words.section_of(cls, "Source"), "")
    yield from facts.see_also(name, cls)
