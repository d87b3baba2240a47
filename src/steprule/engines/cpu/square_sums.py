"""Sums of squares of the gradients of one kernel runner, before its kernel runs.

In the same chunks as an update, so that they have the same bits for any number of threads: each
leaves a float64, which are added up in order.
"""

from __future__ import annotations

from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernel_cache.cached_lookup import cached_lookup
from steprule.engines.native.control_block import Control
from steprule.formats.floating import FloatingFormat

_TITLE = "the guard of gradients"

_SQUARES = f"""\
def square_sums(control, first_chunk, last_chunk):
    grads = load_int64(control, {Control.GRADS})
    chunks = load_int64(control, {Control.CHUNKS})
    partials = load_int64(control, {Control.PARTIALS})
    mode = flush_denormals()
    for chunk in range(first_chunk, last_chunk):
        if chunk + 8 < last_chunk:
            ahead = load_int64(grads, load_int64(chunks, 3 * (chunk + 8)))
            prefetch(ahead + {{size}} * load_int64(chunks, 3 * (chunk + 8) + 1))
        grad_address = load_int64(grads, load_int64(chunks, 3 * chunk))
        count = load_int64(chunks, 3 * chunk + 2)
        total = 0.0
        if grad_address != 0:
            grad_address += {{size}} * load_int64(chunks, 3 * chunk + 1)
            for i in range(count):
                value = float64({{read}})
                total = total + value * value
        store_float64(partials, chunk, total)
    restore_denormals(mode)
    return 0
"""
_TOTALS = f"""\
def totals(control, _first, _last):
    tensors = load_int64(control, {Control.TENSORS})
    partials = load_int64(control, {Control.PARTIALS})
    starts = load_int64(control, {Control.STARTS})
    found = load_int64(control, {Control.SQUARE_SUMS})
    for tensor in range(tensors):
        total = 0.0
        for chunk in range(load_int64(starts, tensor), load_int64(starts, tensor + 1)):
            total = total + load_float64(partials, chunk)
        store_float64(found, tensor, total)
    return 0
"""


@cached_lookup
def square_sums_library(storage: FloatingFormat) -> Library:
    """Return ``square_sums``, which runs over chunks of gradients stored so."""
    source = _SQUARES.format(
        size=storage.bytes_for(1), read=storage.kernel_load("grad_address", "i")
    )
    return library_for(source, ("square_sums",), arity=3, reorders_sums=True, title=_TITLE)


@cached_lookup
def totals_library() -> Library:
    """Return ``totals``, which runs over tensors."""
    return library_for(_TOTALS, ("totals",), arity=3, title=_TITLE)
