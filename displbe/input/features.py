"""What a guest's input driver has: which devices it made when it started, and how far their axes go.

Linux's frontend (drivers/input/misc/xen-kbdfront.c) reads our feature nodes once, when it starts. What it cannot bear is never sent:
it looks a key up in its pointer and in its keyboard without asking whether they are there, uses the number as the index of a bit
without checking it, and writes a touch whose number it does not have into another one's.
"""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["DEFAULT_HEIGHT", "DEFAULT_WIDTH", "Features"]

DEFAULT_WIDTH: Final = 800
DEFAULT_HEIGHT: Final = 600
"""XENFB_WIDTH, XENFB_HEIGHT: what Linux's frontend takes where the nodes are missing."""

# linux/input-event-codes.h
KEY_ESC: Final = 1
KEY_UNKNOWN: Final = 240
KEY_OK: Final = 0x160
KEY_MAX: Final = 0x2FF
BTN_LEFT: Final = 0x110
BTN_TASK: Final = 0x117

KEYS: Final = (*range(KEY_ESC, KEY_UNKNOWN), *range(KEY_OK, KEY_MAX))
"""What the frontend's keyboard has."""
BUTTONS: Final = tuple(range(BTN_LEFT, BTN_TASK + 1))
"""What its pointer has."""


class Features(msgspec.Struct, frozen=True):
    """What may be sent to a guest."""

    keyboard: bool = True
    pointer: bool = True
    absolute: bool = False
    """The pointer has positions (POS), else motions (MOTION)."""
    width: int = DEFAULT_WIDTH
    height: int = DEFAULT_HEIGHT
    """Positions are 0 to one less."""
    contacts: int = 0
    """Fingers of the touch screen; 0: there is none."""
    touch_width: int = DEFAULT_WIDTH
    touch_height: int = DEFAULT_HEIGHT

    def codes(self) -> frozenset[int]:
        """The keys and buttons that may be sent."""
        if not self.pointer:
            return frozenset()  # it looks into its pointer first, which is a null pointer then
        return frozenset(BUTTONS + (KEYS if self.keyboard else ()))
