"""Readings that need a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import steprule
from steprule.cli.errors import CommandError

FOLDER = Path(__file__).parent / "children"


def run_child(
    script: str, request: Mapping[str, Any], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a script of the folder `children` and return the JSON that it prints.

    Args:
        script: its file name.
        request: given to it as JSON.
        variables: of its environment, besides this process's.

    Raises:
        CommandError: when it fails.
    """
    # The same steprule as here, however this process came to it.
    roots = [str(Path(steprule.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(root for root in roots if root)
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path, **(variables or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise CommandError(f"bench: {script} failed for {request.get('name')}: {last}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
