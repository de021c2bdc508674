"""Notifications for nothing, ever more slowly listened to.

The kernel slows such storms down for its own backends, not for a program's (XSA-332): so the port is armed again later each time. A
guest that does this waits for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

__all__ = ["Storms", "storm_pause"]

FREE: Final = 2
"""Notifications without a reason that are taken for bad luck."""
FIRST: Final = 0.001
LAST: Final = 1.0
"""Seconds until the port is armed again: the first time, and at most."""


def storm_pause(spurious: int) -> float:
    """Seconds until a port is armed again that has been notified so many times for nothing, one after the other; 0: at once."""
    return min(FIRST * 2 ** min(spurious - FREE, 10), LAST) if spurious > FREE else 0.0


class Storms:
    """One port. `rearm` arms it again."""

    def __init__(self, rearm: Callable[[], None]) -> None:
        self._rearm = rearm
        self._spurious = 0
        self._wanted = trio.Event()

    def notified(self, *, for_nothing: bool) -> None:
        """The port has fired and has been served."""
        self._spurious = self._spurious + 1 if for_nothing else 0
        if storm_pause(self._spurious):
            self._wanted.set()
        else:
            self._rearm()

    async def run(self) -> None:
        """Arm the port again when its time has come, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await trio.sleep(storm_pause(self._spurious))
            self._rearm()
