"""From a kernel's source to object code: a small part of Python, lowered to LLVM.

Kernels are printed as Python because that is what people read (and Python can run them). What they
are made of is so little that a compiler for it is short, and quick: a tenth of a second a kernel.

- Functions of int64 arguments which may call those above them. The ones asked for return int64.
- Numbers are int64, int32, float32, float64 and truth values. A variable keeps the kind of what it
  was first given, operands are of one kind, and only ``int64()``, ``int32()``, ``float32()`` and
  ``float64()`` turn one into another (``bits_of`` and ``float_of`` keep the bits); a condition may
  be a number, which is true unless it is zero. Nothing is checked as Python would: integers wrap,
  divisions give infinity or nan.
- ``for`` over a ``range`` of constant step, or over ``independent(count)``, where no iteration
  touches memory that another one writes (:mod:`~steprule.engines.compiler.independent_loops`);
  ``while``, ``if``, ``continue``, ``break``, ``return``; a function that returns something ends
  with a ``return``. ``and`` and ``or`` stop early; of ``a if c else b`` both sides are computed,
  and may therefore not look at memory.
- Memory by address, and the rest of what :mod:`~steprule.engines.compiler.vocabulary` has.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from steprule.engines.compiler.target import (
    can_convert_half,
    execution_engine,
    object_code_of,
    symbol_of,
)

__all__ = ["can_convert_half", "compile_kernels", "digest", "execution_engine", "symbol_of"]


def compile_kernels(source: str, names: tuple[str, ...], *, reorders_sums: bool) -> bytes:
    """Object code with the functions ``names`` of this source, under their symbols.

    Args:
        source: text in the language above.
        names: the functions to be called from outside, as C functions of int64.
        reorders_sums: whether sums may be taken in several parts at once, as vectors need it.

    Raises:
        LanguageError: the source is not in the language.
    """
    # Only a process that compiles needs these.
    from steprule.engines.compiler.lowering import lowered

    return object_code_of(lowered(source, names, reorders_sums=reorders_sums))


@functools.cache
def digest() -> str:
    """Return what changes with the compiler: what another one made is not to be used."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
