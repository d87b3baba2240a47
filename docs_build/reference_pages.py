"""The reference: every public name with its signature and docstring, one page an area."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

from docs_build import docstrings
from docs_build.public_names import (
    PAGES,
    PublicName,
    names_by_page,
    optimizers,
    page_of_optimizer,
)
from docs_build.signatures import signature_of

_INTRODUCTIONS = {
    "optimizer": "What all optimizers have: arguments, methods, and functions that take any of "
    "them. Each has [a page of its own](../optimizers.md).",
    "wrappers": "Round another optimizer, or beside it. [How to use them](../wrappers.md).",
    "schedules": "Values over steps, for any option of any optimizer. "
    "[How to use them](../schedules.md).",
    "lr_scheduler": "torch's scheduler classes. [What differs from torch's](../lr_scheduler.md).",
    "checkpoints": "Saving a run and going on with it. [How to use them](../checkpoints.md).",
    "rules": "What an update rule is made of. [How to write one](../writing-rules.md).",
    "formats": "How state and weights are kept. [Which there are](../memory.md).",
    "helpers": "Groups of parameters, range tests, logging, kernels made beforehand. "
    "[How to use them](../helpers.md).",
}

# What comes before all others on its page, and what after them.
_PLACES = {"steprule.Optimizer": -1, "steprule.optimizer": 1}


def files() -> dict[str, str | bytes]:
    """Return the pages of the reference, and the list of all names."""
    by_page = names_by_page()
    places = places_of(by_page)
    pages: dict[str, str | bytes] = {
        f"reference/{page}.md": _page(page, names, places) for page, names in by_page.items()
    }
    pages["reference/index.md"] = _index(by_page, places)
    return pages


def places_of(by_page: dict[str, list[PublicName]]) -> dict[str, str]:
    """Return page and anchor of every name and every method, from the site's root."""
    places = {}
    for page, names in by_page.items():
        for public in names:
            places[public.name] = f"reference/{page}.md#{public.anchor}"
            for name, _ in _members(public.thing):
                places[f"{public.name}.{name}"] = f"reference/{page}.md#{public.anchor}.{name}"
    for public in optimizers():
        places[public.name] = page_of_optimizer(public.thing)
    return places


def _page(page: str, names: list[PublicName], places: dict[str, str]) -> str:
    title, _ = PAGES[page]
    # The browser's title, where the navigation's is that of a guide as well.
    parts = [f'---\ntitle: "{title}"\n---', f"# {title}", _INTRODUCTIONS[page]]
    modules = [public for public in names if isinstance(public.thing, ModuleType)]
    rest = [public for public in names if not isinstance(public.thing, ModuleType)]
    order = [*modules, *sorted(rest, key=_order)]
    for public in sorted(order, key=lambda public: _PLACES.get(public.name, 0)):
        parts += _entry(public, f"reference/{page}.md", places)
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _order(public: PublicName) -> tuple[bool, str]:
    """Return what sorts names: those of the package itself first, then those of modules."""
    return public.name.count(".") > 1, public.name.rpartition(".")[0] + public.short.lower()


def _entry(public: PublicName, page: str, places: dict[str, str]) -> Iterator[str]:
    address = address_from(page, public, places)
    yield f"## {public.name} {{ #{public.anchor} data-toc-label='{public.short}' }}"
    thing = public.thing
    if public.name == "steprule.OPTIMIZERS":
        yield "All optimizers, as a dict from the name that the command line knows to the class."
        return
    if callable(thing):
        yield _code(signature_of(thing, public.name))
    docstring = _docstring(thing)
    if docstring:
        yield docstrings.markdown(docstring, address)
    for name, member in _members(thing):
        anchor = f"{public.anchor}.{name}"
        yield f"### {public.short}.{name} {{ #{anchor} .member data-toc-label='{name}' }}"
        yield _code(signature_of(member, name))
        words = inspect.getdoc(member) or _inherited_words(thing, name)
        if words:
            yield docstrings.markdown(words, address)


def _docstring(thing: Any) -> str:
    """Return its own words: not those of ``dict`` or ``Protocol``."""
    if isinstance(thing, type) and not thing.__doc__:
        return ""
    return inspect.getdoc(thing) or ""


def _inherited_words(cls: type, name: str) -> str:
    for base in cls.__mro__:
        member = vars(base).get(name)
        if member is not None and (words := inspect.getdoc(member)):
            return words
    return ""


def _members(thing: Any) -> list[tuple[str, Any]]:
    """Return the methods and properties to be shown of a class: its own ones with docstrings."""
    if not isinstance(thing, type) or issubclass(thing, BaseException):
        return []
    found = []
    for name, member in vars(thing).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        is_shown = inspect.isfunction(function) or isinstance(function, property)
        if is_shown and not name.startswith("_") and _has_words(thing, name, function):
            found.append((name, function))
    return found


def _has_words(cls: type, name: str, member: Any) -> bool:
    """Say whether it has a docstring: of its own, or of the base where it stands there alone."""
    if getattr(cls, "_is_protocol", False):  # its members are what it is there for
        return True
    own = member.fget.__doc__ if isinstance(member, property) else member.__doc__
    is_of_base = any(name in vars(base) for base in cls.__mro__[1:])
    if own or (is_of_base and cls.__name__ != "Optimizer"):
        return bool(own)
    return bool(_inherited_words(cls, name))


def address_from(page: str, public: PublicName, places: dict[str, str]) -> docstrings.Address:
    """Return what leads from a page to what the docstring of a public name refers to."""

    def address(name: str) -> str | None:
        package = public.name.rpartition(".")[0]
        for full in (name, f"steprule.{name}", f"{public.name}.{name}", f"{package}.{name}"):
            for form in (full, re.sub(r"^steprule\.(?:\w+\.)+(?=\w+$)", "steprule.", full)):
                if form in places:
                    return os.path.relpath(places[form], PurePosixPath(page).parent)
        return None

    return address


def _code(signature: str) -> str:
    return f"```python {{ .signature }}\n{signature}\n```"


def _index(by_page: dict[str, list[PublicName]], places: dict[str, str]) -> str:
    lines = ["# All public names", ""]
    lines += ["What `import steprule as optim` gives, and its modules, by area.", ""]
    for page, names in by_page.items():
        lines += [f"## [{PAGES[page][0]}]({page}.md)", "", "| name | |", "|---|---|"]
        for public in sorted(names, key=_order):
            if isinstance(public.thing, ModuleType):
                continue
            lines.append(_row(public, places))
        lines.append("")
    lines += ["## [The optimizers](../optimizers.md)", "", "| name | |", "|---|---|"]
    lines += [_row(public, places) for public in optimizers()]
    return "\n".join(lines) + "\n"


def _row(public: PublicName, places: dict[str, str]) -> str:
    place = os.path.relpath(places[public.name], "reference")
    first = _docstring(public.thing).partition("\n\n")[0] if callable(public.thing) else ""
    text = docstrings.markdown(" ".join(first.split()), lambda _: None) if first else ""
    return f"| [`{public.name}`]({place}) | {text.strip().replace('|', '&#124;')} |"
