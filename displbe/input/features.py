"""The input devices that a guest's frontend has created, and the ranges of their axes.

Linux's frontend (drivers/input/misc/xen-kbdfront.c) reads our feature nodes once, when it starts. It does not check the events that
it gets: it looks up a key in its pointer and in its keyboard without checking that they exist, uses the key's code unchecked as a bit
index, and applies a touch with an unknown contact number to another contact. Such events are therefore never sent.
"""

from __future__ import annotations

from typing import Final

import msgspec

from .event_codes import BTN_LEFT, BTN_TASK, KEY_ESC, KEY_MAX, KEY_OK, KEY_UNKNOWN

__all__ = ["DEFAULT_HEIGHT", "DEFAULT_WIDTH", "Features"]

DEFAULT_WIDTH: Final = 800
DEFAULT_HEIGHT: Final = 600
"""XENFB_WIDTH and XENFB_HEIGHT in pixels: Linux's frontend uses them when the nodes are missing."""

KEYS: Final = (*range(KEY_ESC, KEY_UNKNOWN), *range(KEY_OK, KEY_MAX))
"""Key codes of the frontend's keyboard."""
BUTTONS: Final = tuple(range(BTN_LEFT, BTN_TASK + 1))
"""Button codes of the frontend's pointer."""


class Features(msgspec.Struct, frozen=True):
    """The events that may be sent to a guest."""

    keyboard: bool = True
    pointer: bool = True
    absolute: bool = False
    """Whether the pointer takes positions (XENKBD_TYPE_POS) instead of motions (XENKBD_TYPE_MOTION)."""
    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    """The range of positions: 0 to `width` - 1 and 0 to `height` - 1."""
    contacts: int = 0
    """The number of contacts that the touch screen tracks; 0: there is no touch screen."""
    touch_width: int = DEFAULT_WIDTH
    touch_height: int = DEFAULT_HEIGHT
    """The range of touch positions, in the same way."""

    def codes(self) -> frozenset[int]:
        """Return the keys and buttons that may be sent."""
        if not self.pointer:
            return frozenset()  # the frontend looks up every key in its pointer device first, which is NULL then
        return frozenset(BUTTONS + (KEYS if self.keyboard else ()))
