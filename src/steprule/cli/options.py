"""Options as text: `momentum=0.9,nesterov=true,betas=(0.9,0.99)`."""

from __future__ import annotations

import ast
from typing import Any

from steprule.cli.errors import CommandError

WORDS = {"true": True, "false": False, "none": None}


def parse_option(text: str, where: str) -> tuple[str, Any]:
    """Return name and value of `momentum=0.9`; a name alone is true.

    Raises:
        CommandError: there is no name; the message begins with `where`.
    """
    name, equals, value = (word.strip() for word in text.partition("="))
    if not name.isidentifier():
        raise CommandError(f"{where}: expected an option's name, got {text.strip()!r}")
    return name, value_of(value) if equals else True


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """Return the parts between separators, but for those within brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def value_of(text: str) -> Any:
    """Return a number, a truth value, None, a tuple of them, or the word itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):  # two are of depth
        return text  # a word, as in line_search_fn=strong_wolfe
