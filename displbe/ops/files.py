"""Files that other programs read at any time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file so that a reader finds either the old content or the new one, never a part. Blocks. Raises OSError.

    The data is first written to a file with the suffix `.part`. `mode` has the permissions; None: the permissions that the umask allows.
    """
    part = path.with_suffix(".part")
    part.write_bytes(data)
    if mode is not None:
        part.chmod(mode)
    os.replace(part, path)
