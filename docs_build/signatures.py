"""Signatures as code that reads well: one argument a line where they are many."""

from __future__ import annotations

import inspect
import re
from typing import Any

# What fits beside the navigation on a screen of 1280 pixels, the button that copies left free.
_WIDTH = 74


def signature_of(thing: Any, name: str) -> str:
    """Return how a class or function is called, with types and defaults.

    Args:
        thing: the class, function, method or property.
        name: as what it is shown, ``steprule.AdamW`` or ``explain``.
    """
    if isinstance(thing, property):
        kind = _annotation(getattr(thing.fget, "__annotations__", {}).get("return"))
        return f"{name}: {kind}" if kind else name
    if getattr(thing, "_is_protocol", False):
        return f"class {name}(Protocol)"
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return name
    parts = _parts([p for p in signature.parameters.values() if p.name not in ("self", "cls")])
    result = _annotation(signature.return_annotation) if not isinstance(thing, type) else ""
    arrow = f" -> {result}" if result else ""
    start = f"class {name}" if isinstance(thing, type) else name
    on_one_line = f"{start}({', '.join(parts)}){arrow}"
    if len(on_one_line) <= _WIDTH:
        return on_one_line
    return "\n".join([f"{start}(", *(f"    {part}," for part in parts), f"){arrow}"])


def _parts(parameters: list[inspect.Parameter]) -> list[str]:
    parts: list[str] = []
    was_star = False
    for at, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            was_star = True
        if parameter.kind is parameter.KEYWORD_ONLY and not was_star:
            parts.append("*")
            was_star = True
        parts.append(_part(parameter))
        is_last_positional = parameter.kind is parameter.POSITIONAL_ONLY and (
            at + 1 == len(parameters) or parameters[at + 1].kind is not parameter.POSITIONAL_ONLY
        )
        if is_last_positional:
            parts.append("/")
    return parts


def _part(parameter: inspect.Parameter) -> str:
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    kind = _annotation(parameter.annotation)
    text = f"{stars}{parameter.name}{f': {kind}' if kind else ''}"
    if parameter.default is parameter.empty:
        return text
    return f"{text}{' = ' if kind else '='}{_default(parameter.default)}"


def _default(value: Any) -> str:
    if inspect.isroutine(value) or isinstance(value, type):
        return str(value.__name__)
    text = repr(value)
    return "..." if re.search(r" at 0x|^<", text) else text


def _annotation(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty or annotation is None:
        return "None" if annotation is None else ""
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        text = annotation.__name__
    else:
        text = str(annotation)
    return re.sub(r"\b(typing|typing_extensions|collections\.abc|steprule(\.\w+)+)\.", "", text)
