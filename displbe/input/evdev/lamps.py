"""The lamps of a keyboard (Caps Lock, Num Lock, Scroll Lock): they show the locks of the guest that has the keyboard.

Only a keyboard that displbe has grabbed shows them; the lamps of another one belong to the host, whose console sets them again when the
grab ends (kbd_start in drivers/tty/vt/keyboard.c).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

import structlog

from displbe.input.event_codes import (
    KEY_CAPSLOCK,
    KEY_NUMLOCK,
    KEY_SCROLLLOCK,
    LED_CAPSL,
    LED_NUML,
    LED_SCROLLL,
)
from displbe.input.locks import Locks
from displbe.ops.log import SparseLog

__all__ = ["Lamps"]

LAMPS: Final = {KEY_NUMLOCK: LED_NUML, KEY_CAPSLOCK: LED_CAPSL, KEY_SCROLLLOCK: LED_SCROLLL}
"""The lamp of each lock key."""

_say: Final = SparseLog(structlog.get_logger("displbe.evdev"))


class Lamps:
    """The lamps of one keyboard. `set_lamps` switches lamps, by their codes; it raises OSError."""

    def __init__(self, name: str, leds: frozenset[int], set_lamps: Callable[[dict[int, bool]], None]) -> None:
        self._name = name
        self._leds = leds & frozenset(LAMPS.values())
        self._set = set_lamps
        self._locks: Locks | None = None
        """The locks that the lamps show; None: the lamps are not ours."""
        self._shown: dict[int, bool] = {}

    def follow(self, locks: Locks | None) -> None:
        """Show these locks from now on. None: leave the lamps alone."""
        if not self._leds or locks is self._locks:
            return
        if self._locks is not None:
            self._locks.listeners.remove(self._show)
        self._locks = locks
        self._shown = {}
        if locks is not None:
            locks.listeners.append(self._show)
            self._show()

    def _show(self) -> None:
        on = self._locks.on if self._locks is not None else set()
        wanted = {lamp: code in on for code, lamp in LAMPS.items() if lamp in self._leds}
        if wanted == self._shown:
            return
        self._shown = wanted
        try:
            self._set(wanted)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.EACCES, errno.EPERM):  # opened for reading only
                self._leds = frozenset()
                _say(
                    "keyboard lamps do not show the guest's locks",
                    "displbe may only read input devices; DeviceAllow=char-input rw in its unit lets it write",
                    level="info",
                    device=self._name,
                )
            # A device that has gone is noticed by its reader.
