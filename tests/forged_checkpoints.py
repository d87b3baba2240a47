"""Checkpoint files with a right digest and content of anyone's choice."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any


def forged(
    path: Path,
    plain: Any,
    tensors: dict[str, Any] | None = None,
    data: bytes = b"",
    about: dict[str, str] | None = None,
) -> Path:
    """Write a file whose digest is right.

    Args:
        path: where.
        plain: its content as JSON, or text that may be none.
        tensors: the header's entries.
        data: the bytes after it.
        about: more of the header's metadata.
    """
    content = plain if isinstance(plain, str) else json.dumps(plain)
    metadata = {"content": content, "steprule": "1", "sha256": "0" * 64, **(about or {})}
    header = json.dumps({"__metadata__": metadata, **(tensors or {})}, separators=(",", ":"))
    text = header.encode() + b" " * (-len(header.encode()) % 8)
    whole = struct.pack("<Q", len(text)) + text + data
    digest = hashlib.sha256(whole).hexdigest()
    path.write_bytes(whole.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest.encode(), 1))
    return path
