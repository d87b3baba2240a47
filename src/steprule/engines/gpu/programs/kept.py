"""Compiled kernels, kept on disk as the CPU's are."""

from __future__ import annotations

import hashlib

from steprule.engines.gpu.programs.compiled import Compiled, compiled, compiler_digest
from steprule.engines.kernel_cache.cache import kept_code
from steprule.engines.kernel_cache.cached_lookup import cached_lookup


@cached_lookup
def kept_kernel(source: str, name: str, capability: int, title: str) -> Compiled:
    """Return a kernel for cards of a compute capability: from disk, or compiled now."""
    parts = [compiler_digest(), f"sm_{capability}", source]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    code = kept_code(digest, source, lambda: compiled(source, name, capability).to_bytes(), title)
    return Compiled.from_bytes(code)
