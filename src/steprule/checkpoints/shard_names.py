"""What files are called in which ranks store their parts, and how those of no use are removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Collection
from pathlib import Path

from steprule.checkpoints.replacing import YOUNG, is_in_use

_SUFFIX, _DIGITS = ".part", 16
# Of the name of the index, so that with what is added it is none that is too long.
_LONGEST_STEM = 100
_FORM = rf"\.[0-9a-f]{{{_DIGITS}}}\.[0-9]+-of-[0-9]+" + re.escape(_SUFFIX)
#: What is no path to elsewhere; whatever the index is called now.
PLAIN = re.compile(rf"[^/\\\0]{{1,{_LONGEST_STEM}}}{_FORM}")


def new_token() -> str:
    """Return what all files of one checkpoint have in their names, and no other's have."""
    return secrets.token_hex(_DIGITS // 2)


def name_of(target: Path, token: str, rank: int, size: int) -> str:
    """Return the name of a rank's file beside the index."""
    return f"{_stem(target)}.{token}.{rank}-of-{size}{_SUFFIX}"


def _stem(target: Path) -> str:
    name = target.name
    if len(name) <= _LONGEST_STEM:
        return name
    # Of two that begin alike, neither may be taken for the other's.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGITS]
    return f"{name[: _LONGEST_STEM - _DIGITS - 1]}-{digest}"


def remove_parts(target: Path, kept: Collection[str], known: Collection[str] = ()) -> None:
    """Remove files of parts that no index names any more.

    Args:
        target: the index.
        kept: names of those that it names.
        known: names of those that the index before it named; of others, which writers left that
            were killed, only what nobody holds and is older than a minute goes.
    """
    own = re.compile(re.escape(_stem(target)) + _FORM)
    with contextlib.suppress(OSError):
        for left in target.parent.iterdir():
            if not own.fullmatch(left.name) or left.name in kept:
                continue
            with contextlib.suppress(OSError):
                is_old = time.time() - left.stat().st_mtime > YOUNG
                if left.name in known or (is_old and not is_in_use(left)):
                    left.unlink()
