"""Kernels compiled for a GPU, which need not be there."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steprule.engines.gpu.arguments import signature
from steprule.engines.gpu.programs.version import triton_version
from steprule.engines.kernel_cache.cache import CompilationError

WARPS = 4


@dataclass(frozen=True)
class Compiled:
    """A kernel as machine code, and what launching it takes.

    Attributes:
        cubin: the machine code.
        symbol: the kernel's name in it.
        shared: bytes of shared memory.
        parameters: how many arguments it takes: Triton adds its own to ours.
        threads: of one program.
    """

    cubin: bytes
    symbol: str
    shared: int
    parameters: int
    threads: int

    def to_bytes(self) -> bytes:
        """Return all as it is kept on disk: a line of JSON, and the code."""
        about = {
            "symbol": self.symbol,
            "shared": self.shared,
            "parameters": self.parameters,
            "threads": self.threads,
        }
        return json.dumps(about).encode() + b"\n" + self.cubin

    @staticmethod
    def from_bytes(kept: bytes) -> Compiled:
        """Return what :meth:`to_bytes` was given."""
        about, _, cubin = kept.partition(b"\n")
        return Compiled(cubin=cubin, **json.loads(about))


def compiled(source: str, name: str, capability: int) -> Compiled:
    """Return a kernel compiled for NVIDIA cards of a compute capability (90 for 9.0)."""
    made = triton_compiled(source, name, "cuda", capability, 32)
    return Compiled(
        cubin=made.asm["cubin"],
        symbol=made.metadata.name,
        shared=made.metadata.shared,
        parameters=parameters_in(made.asm["ptx"], made.metadata.name),
        threads=32 * made.metadata.num_warps,
    )


def triton_compiled(source: str, name: str, backend: str, arch: Any, warp_size: int) -> Any:
    """Return what Triton's compiler makes of a kernel for some target.

    Raises:
        CompilationError: it makes nothing of it.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    ast = ASTSource(fn=jit_kernel(source, name), signature=signature(), constexprs={})
    # A product and a sum are rounded one after the other, as on the CPU.
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    try:
        return triton.compile(ast, target=GPUTarget(backend, arch, warp_size), options=options)
    except Exception as error:
        message = f"its kernel could not be compiled ({type(error).__name__}: {error})"
        raise CompilationError(message.split("\n")[0]) from error


def jit_kernel(source: str, name: str) -> Any:
    """Return a kernel's text as Triton's compiler takes it."""
    from triton.runtime.jit import JITFunction

    from steprule.engines.gpu.programs import words
    from steprule.engines.gpu.programs.functions import function_of

    return JITFunction(function_of(source, name, words))


@functools.cache
def compiler_digest() -> str:
    """Return what the machine code of a text depends on, beside its target."""
    words = Path(__file__).with_name("words.py").read_text()
    options = f"{WARPS} warps, no fusion"
    parts = [f"triton {triton_version()}", options, str(signature()), words]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def parameters_in(ptx: str, symbol: str) -> int:
    """Return how many parameters a kernel's text declares."""
    found = re.search(rf"\.entry {re.escape(symbol)}\((.*?)\)", ptx, re.DOTALL)
    assert found is not None
    return found[1].count(".param")
