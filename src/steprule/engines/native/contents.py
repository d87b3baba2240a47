"""What dicts and lists held, for the native loops to see whether they still do."""

from __future__ import annotations

from array import array
from collections.abc import Container, Sequence
from typing import Any

from steprule.engines.native.loops import address_of, native, world
from steprule.engines.native.loops_source import Loop, Outcome, Row


class Contents:
    """Rows of dicts and lists (:class:`~steprule.engines.native.loops_source.Row`).

    Args:
        things: dicts, each with the keys whose values are watched, and lists, with None.
    """

    def __init__(self, things: Sequence[tuple[Any, Container[Any] | None]]) -> None:
        known = [_known(thing, keys) for thing, keys in things]
        # In one array, so that the loop finds what comes next beside it.
        self._known = array("q", [word for words in known for word in words])
        self._rows = array("q")
        start = address_of(self._known)
        for (thing, keys), words in zip(things, known, strict=True):
            row = {
                Row.THING: id(thing),
                Row.KNOWN: start,
                Row.COUNT: len(thing),
                Row.IS_DICT: int(keys is not None),
            }
            self._rows.extend(row[word] for word in Row)
            start += 8 * len(words)
        self.address = address_of(self._rows)
        self.count = len(things)
        self._dicts = [thing for thing, keys in things if keys is not None]
        # The rows have addresses of objects: none may be given to another one.
        self._held = [(thing, list(thing)) for thing, _ in things]
        self._values = [list(thing.values()) for thing in self._dicts]

    def renew(self) -> bool:
        """Take the dicts' present values for known; False if they have other keys than before."""
        values = [list(thing.values()) for thing in self._dicts]
        outcome = array("q", [0])
        native()[Loop.RENEW](self.address, self.count, address_of(world()), address_of(outcome))
        self._values = values
        return outcome[0] == Outcome.AS_PLANNED


def _known(thing: Any, keys: Container[Any] | None) -> list[int]:
    if keys is None:
        return [id(item) for item in thing]
    return [
        word for key, value in thing.items() for word in (id(key), id(value) if key in keys else 0)
    ]
