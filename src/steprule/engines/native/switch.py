"""Whether the native loops may be used: the environment, a setting, and what was found here."""

from __future__ import annotations

import os
import warnings

from steprule.schedules import checks

#: Set to one of OFF, the loops are never used; to one of ON, or not set, where they work.
VARIABLE = "STEPRULE_NATIVE"
OFF, ON = ("0", "no", "false", "off"), ("1", "yes", "true", "on", "")


def word_of(value: str) -> str:
    """Return what the variable says, as OFF and ON have it."""
    return value.strip().lower()


# Why they may not be used, by who says so.
_reasons: dict[str, str] = {}
if word_of(os.environ.get(VARIABLE, "")) in OFF:
    _reasons["environment"] = f"{VARIABLE}={os.environ[VARIABLE].strip()} is set"


def is_allowed() -> bool:
    """Tell whether nobody and nothing speaks against them."""
    return not _reasons


def is_audited(turn: int) -> bool:
    """Tell whether the loops are looked at before this use: at powers of two, and when off."""
    return bool(_reasons) or turn & (turn - 1) == 0


def why_off() -> str | None:
    """Return why the loops may not be used; None if they may."""
    return next(iter(_reasons.values()), None)


def set_native_loops(enabled: bool) -> None:
    """Use the native loops around a step, or do without them from the next step on.

    They read torch's and Python's objects directly, so that checks before a step cost nanoseconds
    a tensor. Results are the same without them. ``STEPRULE_NATIVE=0`` in the environment switches
    them off as well, and so does an audit that finds them wrong; neither can be undone here.

    Args:
        enabled: whether to use them (True at first), where they work.

    Raises:
        TypeError: neither True nor False.
    """
    if not checks.is_switch(enabled):
        raise TypeError(f"enabled must be True or False, got {enabled!r}")
    if enabled:
        _reasons.pop("setting", None)
    else:
        _reasons["setting"] = "set_native_loops(False) was called"


def rule_out(reason: str) -> None:
    """Note why the loops can't work in this process."""
    _reasons.setdefault("process", reason)


def turn_off_for_good(field: str) -> None:
    """Use them no more in this process, and say so once: they read what is not there."""
    if "audit" in _reasons:
        return
    reason = f"an audit found that they read a tensor's {field} otherwise than Python does"
    _reasons["audit"] = reason
    warnings.warn(
        f"steprule's native loops are off from now on: {reason}. Steps are only slower without "
        f"them. {VARIABLE}=0 in the environment switches them off from the start; please report "
        "this, with the versions of torch and Python",
        RuntimeWarning,
        stacklevel=2,
    )
