"""What is installed, and what steprule asks for, by the packages' own metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata

# The extras for users; the others are for work on steprule itself.
EXTRAS = ("cli", "search")
_REQUIREMENT = re.compile(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


@dataclass(frozen=True)
class Requirement:
    """A package that must be there.

    Attributes:
        package: its name.
        oldest: its first version that will do; empty if any will.
        extra: for which extra it must be there; empty if it always must.
    """

    package: str
    oldest: str = ""
    extra: str = ""

    def is_met_by(self, version: str | None) -> bool:
        """Tell whether that version will do; None if there is none."""
        return version is not None and _numbers(version) >= _numbers(self.oldest)


def requirements() -> list[Requirement]:
    """Return what the installed steprule asks for; nothing if it runs from a plain folder."""
    try:
        lines: Iterable[str] = metadata.requires("steprule") or ()
    except metadata.PackageNotFoundError:
        return []
    return list(_parsed(lines))


def _parsed(lines: Iterable[str]) -> Iterator[Requirement]:
    for line in lines:
        wanted, _, marker = line.partition(";")
        found, extra = _REQUIREMENT.match(wanted), _EXTRA.search(marker)
        if found is not None:
            yield Requirement(found[1], found[2] or "", "" if extra is None else extra[1])


def version_of(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``(2, 13)`` of ``"2.13.0a0+git1"``.

    Zeros at the end are left out, so that 2.5 and 2.5.0 are the same.
    """
    leading = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in (leading[0] if leading else "").split(".") if part]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
