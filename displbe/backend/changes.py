"""Wakes a device's task when something in XenStore may have changed. State is level-triggered: a watch only says "look again"."""

from __future__ import annotations

import math
from typing import Final

import trio

__all__ = ["LOOKS", "Changes"]

LOOKS: Final = 0.05
"""Minimum seconds between two looks at the store that a guest's writes cause. The first write causes a look at once, and the steps of a
handshake are further apart than this.
"""


class Changes:
    """Wakes a device's task for changes since its last look at the store: for a guest's changes after a pause, for all others at once.

    A guest can write as fast as it likes, and each look keeps XenStore from serving others.
    """

    def __init__(self) -> None:
        self._any = trio.Event()
        self._urgent = trio.Event()
        self._guest_looked_at = -math.inf
        """The time of the last look that a guest's change caused, in seconds of trio's clock."""

    def begin_look(self) -> None:
        """Begin a look. Changes from now on cause another one."""
        self._any, self._urgent = trio.Event(), trio.Event()

    def mark(self) -> None:
        """Note a possible change of a node that the guest does not write."""
        self._urgent.set()
        self._any.set()

    def mark_guest(self) -> None:
        """Note a possible change of a node that the guest writes."""
        self._any.set()

    async def wait(self, seconds: float) -> None:
        """Wait until the next look is due: for a change, or for at most `seconds`."""
        with trio.move_on_after(seconds):
            await self._any.wait()
            if not self._urgent.is_set():
                with trio.move_on_at(self._guest_looked_at + LOOKS):
                    await self._urgent.wait()
                self._guest_looked_at = trio.current_time()
