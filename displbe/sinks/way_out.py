"""The keys by which a user takes the desktop's shortcuts back from a guest, or gives them again: left Ctrl and left Alt, pressed and
released together without another key. The viewers of other virtual machines have the same keys.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WAY_OUT", "WayOut"]

WAY_OUT: Final = frozenset({29, 56})
"""KEY_LEFTCTRL and KEY_LEFTALT (input-event-codes.h)."""


class WayOut:
    """Watches the keys of one window. Codes are Linux's."""

    def __init__(self) -> None:
        self._down: set[int] = set()
        """The keys that are down."""
        self._armed = False
        """Whether exactly the keys of the way out are down, and nothing has happened since."""

    def key(self, code: int, down: bool) -> bool:
        """Take note of a key. Return whether its release completes the way out."""
        if down:
            self._down.add(code)
            self._armed = self._down == WAY_OUT
            return False
        self._down.discard(code)
        completed, self._armed = self._armed and code in WAY_OUT, False
        return completed

    def spoil(self) -> None:
        """Take note of a button: Ctrl+Alt and a click is the guest's."""
        self._armed = False

    def reset(self) -> None:
        """Forget the keys: the window has got the keyboard, or lost it."""
        self._down.clear()
        self._armed = False
