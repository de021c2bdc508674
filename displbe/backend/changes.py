"""Wakes a device's task when something in XenStore may have changed. State is level-triggered: a watch only says "look again"."""

from __future__ import annotations

import math
from typing import Final

import trio

__all__ = ["LOOKS", "Changes"]

LOOKS: Final = 0.05
"""Minimum seconds between two looks at the store that a guest's writes cause. A look for the first write follows at once; the steps of a
handshake are further apart than this.
"""


class Changes:
    """What may have changed since the last look. A guest's changes are looked at after a pause, all others at once.

    A guest may write as fast as it likes, and each look keeps XenStore from serving others.
    """

    def __init__(self) -> None:
        self._any = trio.Event()
        self._urgent = trio.Event()
        self._guest_looked_at = -math.inf
        """When the last look was that a guest's change caused, in seconds of trio's clock."""

    def begin_look(self) -> None:
        """A look begins: what changes from now on causes another one."""
        self._any, self._urgent = trio.Event(), trio.Event()

    def mark(self) -> None:
        """Something may have changed that the guest does not write."""
        self._urgent.set()
        self._any.set()

    def mark_guest(self) -> None:
        """Something may have changed that the guest writes."""
        self._any.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the next look is due: for a change, and for at most so many seconds."""
        with trio.move_on_after(seconds):
            await self._any.wait()
            if not self._urgent.is_set():
                with trio.move_on_at(self._guest_looked_at + LOOKS):
                    await self._urgent.wait()
                self._guest_looked_at = trio.current_time()
