"""The form in which names of cards and connectors are compared."""

from __future__ import annotations

import re

__all__ = ["canonical"]


def canonical(name: str) -> str:
    """Return a name with `_` for each character that is no letter, digit, dot or hyphen: xl ends a connector's name at a colon."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", name)
