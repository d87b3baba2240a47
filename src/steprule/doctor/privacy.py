"""Reports are pasted where everybody reads them: home folders and user names are left out."""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from steprule.doctor.finding import Finding

USER = "<user>"
# A name or path that goes on is another one: /home/al is not the beginning of /home/alice.
_BEFORE, _AFTER = r"(?<![\w.-])", r"(?![\w.-])"


def masked(finding: Finding) -> Finding:
    """Return a finding with ``~`` for the home folder, and ``<user>`` for a folder of that name."""
    return replace(finding, value=masked_text(finding.value), advice=masked_text(finding.advice))


def masked_text(text: str) -> str:
    """Return text without home folder and user name."""
    for home in _homes():
        text = re.sub(_BEFORE + re.escape(home) + _AFTER, "~", text)
    with contextlib.suppress(KeyError, OSError, ImportError):  # nobody by name: containers
        user = re.escape(getpass.getuser())
        text = re.sub(rf"(?<=[/\\]){user}{_AFTER}", USER, text)
    return text


def _homes() -> Iterator[str]:
    """Yield the home folder by all its names; none where it is the root of all folders."""
    try:
        home = Path.home()
    except RuntimeError:
        return
    for path in (home, home.resolve()):
        if len(path.parts) > 1:
            yield str(path)
