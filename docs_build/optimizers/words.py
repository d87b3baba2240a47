"""What an optimizer's docstring says, by its sections, as Markdown of its page."""

from __future__ import annotations

import functools
import inspect
import re

from docs_build import docstrings
from docs_build.public_names import PublicName, names_by_page, page_of_optimizer
from docs_build.reference_pages import address_from, places_of
from steprule.optimizer import Optimizer

# "(default 0.1)", "(default 2.0; the paper: 5)", "(default None: no warm-up)", "(default)".
_VALUE = r"((?:[^():;]|\([^()]*\))*)"
_DEFAULT = re.compile(rf" \(default {_VALUE}(?:([:;]) ((?:[^()]|\([^()]*\))*))?\)")
_BARE = re.compile(r" \(default\)")


def summary_of(cls: type[Optimizer]) -> str:
    """Return the docstring's first sentence."""
    return text(cls, _remarks(cls)[0])


def remarks_of(cls: type[Optimizer]) -> list[str]:
    """Return its other paragraphs, but for those that explain a formula given as code.

    Those begin in lower case: "and in update_hessian, ...". LBFGS, which has no rule, has a formula
    by hand on its page, with remarks of its own.
    """
    found = _remarks(cls)[1:] if cls.rule is not None else []
    return [text(cls, one) for one in found if not one[:1].islower() and one[-1:] != ":"]


def section_of(cls: type[Optimizer], name: str) -> str:
    """Return a section that is running text, such as "When to use"; "" if there is none."""
    for title, lines in _sections(cls):
        if title.partition(",")[0] == name:
            words = " ".join(docstrings.paragraphs(lines))
            begin = title.partition(", ")[2]
            return text(cls, f"{begin[:1].upper()}{begin[1:]}: {words}" if begin else words)
    return ""


def options_of(cls: type[Optimizer]) -> dict[str, str]:
    """Return what is said of each option, without its default: that has a column of its own."""
    return {name: text(cls, _without_default(words)) for name, words in _arguments(cls).items()}


def sentence(words: str) -> str:
    """Return words that begin with a capital, unless with a letter that is a symbol."""
    return words if words[1:2] == " " else words[:1].upper() + words[1:]


def text(cls: type[Optimizer], words: str) -> str:
    """Return words of its docstring as Markdown."""
    page = page_of_optimizer(cls)
    public = PublicName(f"steprule.{cls.__name__}", cls)
    linked = docstrings.prose(words, address_from(page, public, _places()))
    return linked.replace("``", "`")


@functools.cache
def _places() -> dict[str, str]:
    return places_of(names_by_page())


def _sections(cls: type[Optimizer]) -> list[tuple[str, list[str]]]:
    return list(docstrings.sections(inspect.cleandoc(cls.__doc__ or "")))


def _remarks(cls: type[Optimizer]) -> list[str]:
    found: list[str] = []
    for name, lines in _sections(cls):
        if name:
            break
        found += docstrings.paragraphs(lines)
    return found


def _arguments(cls: type[Optimizer]) -> dict[str, str]:
    for name, lines in _sections(cls):
        if name == "Args":
            return {
                names: " ".join(docstrings.paragraphs(words))
                for names, words in docstrings.items(lines)
                if names not in ("", "params")
            }
    return {}


def _without_default(words: str) -> str:
    def rest(found: re.Match[str]) -> str:
        value, mark, more = found.groups()
        if not mark:
            return ""
        return f" ({value}: {more})" if mark == ":" else f" ({more})"

    return _BARE.sub("", _DEFAULT.sub(rest, words)).rstrip()
