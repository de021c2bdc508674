"""The lag of the loop that serves the rings: how long guests wait because something of ours takes too long."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import trio

__all__ = ["LoopLag"]

PERIOD: Final = 1.0
"""Seconds of which the longest lag is kept."""
MEMORY: Final = 60.0
"""Seconds for which it is kept."""


class LoopLag(trio.abc.Instrument):
    """Measures two things, and keeps the longer: each turn of the loop, from one wait for I/O to the next, since an event that arrives
    meanwhile waits until the turn ends; and how much later than asked a sleeping task wakes up, which is what the machine adds.

    It costs two reads of the clock for each turn.
    """

    def __init__(self) -> None:
        self._turn_began = 0.0
        self._longest = 0.0
        """In the present period."""
        self._before: deque[float] = deque(maxlen=int(MEMORY / PERIOD))
        """In each period before."""

    def after_io_wait(self, timeout: float) -> None:
        """A turn begins (trio.abc.Instrument)."""
        self._turn_began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """A turn ends (trio.abc.Instrument)."""
        took = time.perf_counter() - self._turn_began
        if took > self._longest:
            self._longest = took

    async def run(self) -> None:
        """Measure until cancelled."""
        self._turn_began = time.perf_counter()
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
        """Return the longest lag of the last minute, in seconds."""
        return max(self._longest, *self._before, 0.0)
