"""Python functions of generated text, whose source can be asked for as of any other."""

from __future__ import annotations

import hashlib
import linecache
from types import FunctionType
from typing import Any

import triton.language as tl


def function_of(source: str, name: str, words: Any) -> FunctionType:
    """Return the function of this name.

    Args:
        source: the text of one function.
        name: the function's.
        words: what the text calls ``words``.
    """
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    file = f"<steprule {name} {digest}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    space: dict[str, Any] = {"tl": tl, "words": words, "__name__": __name__}
    exec(compile(source, file, "exec"), space)
    function = space[name]
    assert isinstance(function, FunctionType)
    return function
