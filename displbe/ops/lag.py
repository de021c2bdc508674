"""How late the loop is that serves the rings: what every guest waits for when something of ours takes too long."""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

__all__ = ["Lag"]

PERIOD: Final = 0.25
"""Seconds between two looks."""
MEMORY: Final = 60.0


class Lag:
    """A task that sleeps, and looks how much later than asked it wakes up."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=int(MEMORY / PERIOD))

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = trio.current_time() + PERIOD
            await trio.sleep_until(due)
            self._late.append(trio.current_time() - due)

    def worst(self) -> float:
        """The most that it was late in the last minute, in seconds."""
        return max(self._late, default=0.0)
