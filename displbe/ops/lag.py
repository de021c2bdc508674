"""How late the loop is that serves the rings: what every guest waits for when something of ours takes too long."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import trio

__all__ = ["Lag"]

PERIOD: Final = 1.0
MEMORY: Final = 60.0
"""Seconds."""


class Lag(trio.abc.Instrument):
    """Every turn of the loop, from one wait for events to the next: an event that comes meanwhile has to wait until its end.

    On the way of each flip: two reads of the clock. Besides, a task sleeps, and looks how much later than asked it wakes up: that is
    what the machine keeps from the loop.
    """

    def __init__(self) -> None:
        self._begun = 0.0
        self._longest = 0.0
        """In this period."""
        self._before: deque[float] = deque(maxlen=int(MEMORY / PERIOD))

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins."""
        self._begun = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """It is over."""
        took = time.perf_counter() - self._begun
        if took > self._longest:
            self._longest = took

    async def run(self) -> None:
        """Measure until cancelled."""
        self._begun = time.perf_counter()
        trio.lowlevel.add_instrument(self)
        try:
            while True:
                due = trio.current_time() + PERIOD
                await trio.sleep_until(due)
                self._before.append(max(self._longest, trio.current_time() - due))
                self._longest = 0.0
        finally:
            trio.lowlevel.remove_instrument(self)

    def worst(self) -> float:
        """The most that the loop was late in the last minute, in seconds."""
        return max(self._longest, *self._before, 0.0)
