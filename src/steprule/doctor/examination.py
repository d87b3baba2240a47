"""All that is looked at, in order: what may end the process last, and after what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from steprule.doctor.cache import cache
from steprule.doctor.engines import engines
from steprule.doctor.finding import Finding, problem
from steprule.doctor.hardware import hardware
from steprule.doctor.privacy import masked
from steprule.doctor.self_test import self_test
from steprule.doctor.threads import threads
from steprule.doctor.versions import versions

#: The parts of a report, by what they are called if they fail.
PARTS: tuple[Callable[[], Iterator[Finding]], ...] = (
    versions,
    hardware,
    threads,
    cache,
    engines,
    self_test,
)


def examine() -> Iterator[Finding]:
    """Return what is found, as it is found, without home folder and user name.

    A few steps are taken on small tensors of its own; the kernel they need is compiled and kept
    where kernels are kept. A part that fails is itself a finding.
    """
    return (masked(finding) for part in PARTS for finding in _looked_at(part))


def _looked_at(part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from part()
    except Exception as error:  # noqa: BLE001  # the other parts are to be seen all the more
        value = f"{type(error).__name__}: {error}"
        yield problem(part.__name__, "not looked at", value, "please report this")
