"""What is raised of files that cannot be read."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file is no checkpoint, is damaged, or lacks what was asked for; nothing was loaded."""
