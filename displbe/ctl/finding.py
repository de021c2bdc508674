"""What `displbectl check` says: one thing that it has found, and what mends it."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Finding", "good", "note", "wrong"]


class Finding(msgspec.Struct, frozen=True):
    """`wrong` keeps displbe or a guest from working; `note` costs something."""

    grade: Literal["good", "note", "wrong"]
    what: str
    fix: str = ""


def good(what: str) -> Finding:
    """Nothing to do."""
    return Finding("good", what)


def note(what: str, fix: str) -> Finding:
    """It works, and could be better."""
    return Finding("note", what, fix)


def wrong(what: str, fix: str) -> Finding:
    """It will not work."""
    return Finding("wrong", what, fix)
