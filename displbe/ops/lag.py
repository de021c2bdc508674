"""The lag of the loop that serves the rings: how long guests wait because something of ours takes too long."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

import trio

__all__ = ["LoopLag"]

PERIOD: Final = 1.0
"""Seconds of one period. The longest lag of each period is kept."""
MEMORY: Final = 60.0
"""Seconds for which it is kept."""


class LoopLag(trio.abc.Instrument):
    """Keeps the longest of two kinds of lag.

    One is the time of a turn of the loop, from one wait for I/O to the next: an event that arrives meanwhile waits until the turn ends.
    The other is the delay with which a sleeping task wakes up, which the machine adds. This costs two reads of the clock for each turn.
    """

    def __init__(self) -> None:
        self._turn_began = 0.0
        self._longest = 0.0
        """The longest lag of the present period, in seconds."""
        self._before: deque[float] = deque(maxlen=int(MEMORY / PERIOD))
        """The longest lags of the earlier periods, in seconds."""

    def after_io_wait(self, timeout: float) -> None:
        """Begin a turn (trio.abc.Instrument)."""
        self._turn_began = time.perf_counter()

    def before_io_wait(self, timeout: float) -> None:
        """End a turn (trio.abc.Instrument)."""
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
