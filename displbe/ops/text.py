"""Text that a guest may have written, escaped for logs and terminals."""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_TEXT", "escape"]

MAX_TEXT: Final = 512


def escape(text: str) -> str:
    """Return at most MAX_TEXT characters of the text as printable ASCII. Other characters are written as \\xNN, \\uNNNN or the like."""
    safe = "".join(c if c.isascii() and c.isprintable() else ascii(c)[1:-1] for c in text[:MAX_TEXT])
    return safe if len(text) <= MAX_TEXT else safe + "…"
