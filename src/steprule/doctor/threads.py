"""Threads, and the environment's say in them and in steprule."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import torch

from steprule.doctor.finding import Finding, note
from steprule.doctor.machine import cores
from steprule.engines import interpreting
from steprule.engines.native import switch
from steprule.optimizer.options import suggestion

SECTION = "threads and environment"

#: What steprule reads of the environment by names of its own.
OWN_VARIABLES = ("STEPRULE_CACHE_DIR", "STEPRULE_NATIVE", "STEPRULE_QUIET")
# What else has a say in steps. The environment holds tokens, too: nothing else of it is shown.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "NUMBA_CACHE_DIR",
    "OMP_DYNAMIC",
    "OMP_NUM_THREADS",
    "OMP_PLACES",
    "OMP_PROC_BIND",
    "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TORCHDYNAMO_DISABLE",
    "TRITON_CACHE_DIR",
    "TRITON_INTERPRET",
    "XDG_CACHE_HOME",
)
# Of these, numbers of threads; OpenMP takes one for each level of nesting.
_COUNTS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_COUNT = re.compile(r"\s*0*[1-9]\d*\s*(,\s*0*[1-9]\d*\s*)*")


def threads() -> Iterator[Finding]:
    """Yield torch's threads and OpenMP, and variables that are set."""
    yield _torchs()
    yield Finding(SECTION, "OpenMP", _openmp())
    yield from _variables()


def _torchs() -> Finding:
    count, available = torch.get_num_threads(), cores()
    value = f"{count} (between operations {torch.get_num_interop_threads()})"
    if count <= available:
        return Finding(SECTION, "torch", value)
    return note(
        SECTION,
        "torch",
        value,
        f"more threads than the {available} cores that this process may use: they wait for each "
        f"other. Call torch.set_num_threads({available}), or set OMP_NUM_THREADS",
    )


def _openmp() -> str:
    found = re.search(r"OpenMP [^\n]*", torch.__config__.show())
    return "not in this torch" if found is None else found[0].removeprefix("OpenMP ")


def _variables() -> Iterator[Finding]:
    for name in sorted(os.environ):
        if name.startswith("STEPRULE_") and name not in OWN_VARIABLES:
            yield note(
                SECTION,
                name,
                "is set",
                f"steprule reads no such variable{suggestion(name, OWN_VARIABLES)}",
            )
        elif name == interpreting.VARIABLE and interpreting.is_interpreting():
            yield note(
                SECTION,
                name,
                os.environ[name],
                "Triton's kernels are interpreted, for tests: unset it",
            )
        elif name == switch.VARIABLE:
            yield _native_loops(os.environ[name])
        elif name in _COUNTS:
            yield _thread_count(name, os.environ[name])
        elif name in OWN_VARIABLES or name in VARIABLES:
            yield Finding(SECTION, name, os.environ[name])


def _native_loops(value: str) -> Finding:
    if switch.word_of(value) in (*switch.OFF, *switch.ON):
        return Finding(SECTION, switch.VARIABLE, value)
    return note(
        SECTION,
        switch.VARIABLE,
        value,
        f"is no word that it knows, and passed over: the native loops are as they were. "
        f"{switch.VARIABLE}=0 switches them off",
    )


def _thread_count(name: str, value: str) -> Finding:
    """Return a variable that says how many threads there are to be, and whether it does."""
    if not _COUNT.fullmatch(value):
        return note(
            SECTION,
            name,
            value,
            f"is no number of threads, and passed over: set it to one ({name}={cores()}), or "
            "unset it",
        )
    if int(value.split(",")[0]) > cores():
        return note(
            SECTION,
            name,
            value,
            f"more than the {cores()} cores that this process may use: whoever starts so many "
            f"threads waits for them. Set it to {cores()} at most, or unset it",
        )
    return Finding(SECTION, name, value)
