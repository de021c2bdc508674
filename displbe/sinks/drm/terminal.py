"""The virtual terminal in front, by which displbe tells why another program is DRM master no more."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["in_front"]

ACTIVE: Final = Path("/sys/class/tty/tty0/active")


def in_front() -> str:
    """Return the terminal's name, such as tty1; empty: this machine has none."""
    try:
        return ACTIVE.read_text().strip()
    except OSError:
        return ""
