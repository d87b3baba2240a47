"""The compiler of kernels for CPUs: whether it can be loaded, and what it makes is right."""

from __future__ import annotations

import time

from steprule.doctor.finding import Finding, Level, note, problem
from steprule.doctor.installed import version_of

SECTION, NAME = "self-test", "compiler"
#: What is said of all that is off because it fails: one cause has one remedy.
SLOWER_BY_IT = f"steps are right, and slower; the cause: {SECTION}, {NAME}"
_SOURCE = """
def answer(control, a, b, c):
    total = 0
    for i in range(a):
        total += b
    return total + c
"""


def compiler() -> Finding:
    """Compile a kernel that is not on disk, and run it."""
    try:
        from steprule.engines.compiler import compile_kernels
        from steprule.engines.kernel_cache.cache import Library

        began = time.perf_counter()
        code = compile_kernels(_SOURCE, ("answer",), reorders_sums=False)
        answer = Library(code, ("answer",), arity=4, keeps_gil=False).functions[0]
        found, took = answer(0, 5, 7, 7), time.perf_counter() - began
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        value = f"fails: {type(error).__name__}: {error}"
        if version_of("llvmlite") is None:
            return note(SECTION, NAME, value, "llvmlite is not installed: see versions")
        return problem(
            SECTION,
            NAME,
            value,
            "pip install --force-reinstall llvmlite; steps are right meanwhile, and slower",
        )
    if found != 42:
        return problem(SECTION, NAME, f"wrong: got {found} for 42", "please report this")
    return Finding(SECTION, NAME, f"a kernel compiled and run in {took:.2f} s")


def is_failing() -> bool:
    """Tell whether the compiler explains what else is off."""
    return compiler().level is not Level.OK
