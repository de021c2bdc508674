"""Text of guests' making, made harmless."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_TEXT", "escape"]

MAX_TEXT: Final = 512


def escape(text: str) -> str:
    """Printable ASCII of at most 512 characters: control characters, escape sequences and the like as \\xNN."""
    safe = "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in text[:MAX_TEXT])
    return safe if len(text) <= MAX_TEXT else safe + "…"
