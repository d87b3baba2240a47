"""How a contender is written on the command line: `torch:sgd+momentum=0.9@fused`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steprule.cli.errors import CommandError
from steprule.cli.options import parse_option, split_outside_brackets
from steprule.engines import registry

ENGINES = ("auto", *registry.public_names())


@dataclass(frozen=True)
class Label:
    """One name of `--optimizers`, taken apart.

    Attributes:
        text: as the user wrote it, in lower case.
        wrappers: the names before colons, the outermost first: `sam`, `lookahead`.
        is_torch: whether it is torch's own class.
        name: of the optimizer.
        options: what stands behind plus signs; a word alone is true.
        engine: behind the @, or "".
    """

    text: str
    wrappers: tuple[str, ...]
    is_torch: bool
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        """What `--lr` may call it, the closest first."""
        plain = self.text.partition("@")[0]
        bare = plain.partition("+")[0]
        own = f"torch:{self.name}" if self.is_torch else self.name
        return tuple(dict.fromkeys((self.text, plain, bare, own, self.name)))


def parse_label(text: str, where: str = "--optimizers") -> Label:
    """Take a name apart.

    Args:
        text: `torch:sgd+momentum=0.9@fused`.
        where: it stands, for messages.

    Raises:
        CommandError: an engine that there is not, or an option that is none.
    """
    front, at, engine = text.partition("@")
    if at:
        check_engine(engine)
    front, *written = split_outside_brackets(front, "+")
    *before, name = front.split(":")
    is_torch = bool(before) and before[-1] == "torch"
    options = dict(parse_option(option, f"{where} {text}") for option in written)
    wrappers = tuple(before[:-1] if is_torch else before)
    return Label(text, wrappers, is_torch, name, options, engine)


def split_labels(text: str) -> list[str]:
    """Return the names in a list joined by commas, in lower case."""
    return [part.strip().lower() for part in split_outside_brackets(text, ",")]


def check_engine(engine: str) -> None:
    """Refuse an engine that there is not."""
    if engine not in ENGINES:
        raise CommandError(f"unknown engine {engine!r}; valid: {', '.join(ENGINES)}")
