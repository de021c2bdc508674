"""The lag of the loop that serves the rings: how long guests wait because something of ours takes too long."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Final

import trio

from displbe.readiness import LOOP, ServingClock

__all__ = ["LoopLag"]

PERIOD: Final = 1.0
"""Seconds of one period. The longest lag of each period is kept."""
MEMORY: Final = 60.0
"""Seconds for which it is kept."""
SHORT: Final = 1e-3
"""Seconds of a turn that is no lag. Turns without a pause between them count as one until they have lasted so long together."""
_now: Final = time.monotonic


class LoopLag(ServingClock):
    """The clock of the loop, which keeps the longest of two kinds of lag. Its time is CLOCK_MONOTONIC in seconds.

    One is the time of a turn of the loop, from one wait for I/O to the next: an event that arrives meanwhile waits until the turn ends.
    The other is the delay with which the loop wakes up for a deadline, which the machine adds.

    The loop asks its clock before each wait that is not over at once (`deadline_to_sleep_time`), and after each wait, before it runs any
    task (`current_time`). So measuring costs no call: an instrument of trio's would take eight for each turn. No lag is known of a loop
    that runs on another clock.
    """

    def __init__(self) -> None:
        self._turn_began = _now()
        self._deadline = math.inf
        """When the wait under way should end at the latest."""
        self._is_waiting = False
        """Whether the loop waits for I/O, as far as the clock has been told."""
        self._longest = 0.0
        """The longest lag of the present period, in seconds."""
        self._period_ends = 0.0
        self._before: deque[tuple[float, float]] = deque()
        """The ends of earlier periods, and their longest lags in seconds."""

    def start_clock(self) -> None:
        """Begin the first turn (trio.abc.Clock)."""
        super().start_clock()
        self._turn_began = _now()

    def current_time(self) -> float:
        """Return the time (trio.abc.Clock). The first call after a wait begins a turn."""
        now = _now()
        if self._is_waiting:
            self._begin_turn(now)
        elif now - self._turn_began > SHORT and not self._is_calling and not trio.lowlevel.in_trio_task():
            # The loop itself asks: a wait is over that was none, because tasks were ready to run.
            self._add(now - self._turn_began, now)
            self._turn_began = now
            if self.files is not None and self.files.is_used:
                self.files.call(self.files.wait(0.0), now)
        return now

    @property
    def _is_calling(self) -> bool:
        """Whether functions of files and alarms run, which may ask for the time."""
        return self.files is not None and self.files.is_calling

    def _begin_turn(self, now: float) -> None:
        self._is_waiting = False
        self._turn_began = now
        late = now - self._deadline
        if late > self._longest or (late > 0 and now >= self._period_ends):
            self._add(late, now)

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return the seconds until the next deadline (trio.abc.Clock). This ends a turn.

        If files are served, this waits, and returns 0 when there is something for the loop to do. Each time that it calls functions is a
        turn.
        """
        files = self.files
        while files is not None and files.is_used:
            until = files.alarm_at if files.alarm_at < deadline else deadline
            ready = files.wait(until - self._end_turn(until))
            self._begin_turn(now := _now())
            files.call(ready, now)
            if LOOP in ready or (deadline := files.next_deadline()) <= now:
                return 0.0
            if not ready and files.is_idle_awaited():
                break
        return deadline - self._end_turn(deadline)

    def _end_turn(self, deadline: float) -> float:
        """End a turn; `deadline` ends the wait that follows. Return the time."""
        now = _now()
        took = now - self._turn_began
        if took > self._longest or now >= self._period_ends:
            self._add(took, now)
        self._is_waiting = True
        self._deadline = deadline if deadline > now else now  # a time that was past when it was set makes nothing late
        return now

    def _add(self, lag: float, now: float) -> None:
        """Add a lag to the present period; begin a new period if that one is over."""
        if now >= self._period_ends:
            self._before.append((self._period_ends, self._longest))
            self._longest, self._period_ends = 0.0, now + PERIOD
            self._forget(now)
        self._longest = max(self._longest, lag)

    def _forget(self, now: float) -> None:
        while self._before and self._before[0][0] <= now - MEMORY:
            self._before.popleft()

    def worst(self) -> float:
        """Return the longest lag of the last minute, in seconds."""
        now = _now()
        self._forget(now)
        return max(self._longest if now < self._period_ends + MEMORY else 0.0, *(lag for _, lag in self._before), 0.0)
