"""What dicts and lists held, for the native loops to see whether they still do."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

from steprule.engines.native.loops import address_of
from steprule.engines.native.loops_text import ContentsWord
from steprule.engines.whole_step import ANY, Contents


class ContentsGuard:
    """Rows of dicts and lists (:class:`~steprule.engines.native.loops_text.ContentsWord`).

    Args:
        things: dicts, each with its known items in order (a value may be
            :data:`~steprule.engines.whole_step.ANY`), and lists
            with theirs.
    """

    def __init__(self, things: Sequence[Contents]) -> None:
        # The rows have addresses of objects: none may be given to another one.
        self._held = [(thing, list(items)) for thing, items in things]
        known = [_words_of(thing, items) for thing, items in things]
        # In one array, so that the loop finds what comes next beside it.
        self._known = array("q", [word for words in known for word in words])
        self._starts = [0]
        self._rows = array("q")
        for (thing, items), words in zip(things, known, strict=True):
            row = {
                ContentsWord.THING: id(thing),
                ContentsWord.KNOWN: address_of(self._known) + 8 * self._starts[-1],
                ContentsWord.COUNT: len(items),
                ContentsWord.IS_DICT: int(isinstance(thing, dict)),
            }
            self._rows.extend(row[word] for word in ContentsWord)
            self._starts.append(self._starts[-1] + len(words))
        self.address = address_of(self._rows)
        self.count = len(things)

    def renew(self, things: Sequence[Contents]) -> bool:
        """Take other items of the same things for known; False if they are more or fewer."""
        if len(things) != self.count:
            return False
        for i, (thing, items) in enumerate(things):
            words = _words_of(thing, items)
            start, end = self._starts[i : i + 2]
            if thing is not self._held[i][0] or len(words) != end - start:
                return False
            self._held[i] = (thing, list(items))
            self._known[start:end] = array("q", words)
        return True


def _words_of(thing: Any, items: Sequence[Any]) -> list[int]:
    if not isinstance(thing, dict):
        return [id(item) for item in items]
    return [word for key, value in items for word in (id(key), 0 if value is ANY else id(value))]
