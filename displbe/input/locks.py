"""Caps Lock, Num Lock and Scroll Lock of a guest, as far as displbe knows them.

kbdif has no way for a guest to say which locks are on. displbe counts the presses that it has sent to the guest since the guest connected,
when all locks are taken to be off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .event_codes import KEY_CAPSLOCK, KEY_NUMLOCK, KEY_SCROLLLOCK

__all__ = ["LOCK_KEYS", "Locks"]

LOCK_KEYS: Final = frozenset((KEY_CAPSLOCK, KEY_NUMLOCK, KEY_SCROLLLOCK))


class Locks:
    """The locks of one guest."""

    def __init__(self) -> None:
        self.on: set[int] = set()
        """The keys whose locks are on."""
        self.listeners: list[Callable[[], None]] = []
        """Called when a lock changes."""

    def toggle(self, code: int) -> None:
        """Handle a press of this key, if it is a lock key."""
        if code in LOCK_KEYS:
            self.on ^= {code}
            for listener in tuple(self.listeners):
                listener()
