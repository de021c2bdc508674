"""The times of a connector's flips: when they were shown and how long they took. A flip costs only stores into preallocated arrays."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from typing import Final

from displbe.ops.status import FlipsStatus, Latency

__all__ = ["FlipTimes", "clock"]

KEPT: Final = 8192
"""The number of flips that are kept: one minute at 136 flips a second. A power of two."""
SAMPLE: Final = 1000
"""The number of last flips whose latencies are reported."""
BUCKETS: Final = 16
"""Buckets of the histogram: less than 0.25 ms, 0.5 ms, … 4 s, and all others."""
_MASK: Final = KEPT - 1
clock: Final = time.monotonic


class FlipTimes:
    """The last flips of one connector over one connection. The pump writes into the arrays, too."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.buckets = array("Q", bytes(8 * BUCKETS))
        self._since = clock()
        self.shown = array("d", bytes(8 * KEPT))
        self.took = array("d", bytes(8 * KEPT))

    def close(self) -> None:
        """Free the memory. No more flips come."""
        self.count = 0
        self.shown = self.took = array("d")

    def add(self, begun: float) -> None:
        """Add a flip that is shown now and was requested at `begun`, in seconds of `clock`."""
        if not self.shown:
            return
        now = clock()
        took = now - begun
        at = self.count & _MASK
        self.count += 1
        self.shown[at] = now
        self.took[at] = took
        self.total += took
        # Quarters of a millisecond; each bucket has twice the width of the one before.
        bucket = int(took * 4000).bit_length()
        self.buckets[bucket if bucket < BUCKETS else BUCKETS - 1] += 1

    def _rate(self, now: float, seconds: float) -> float:
        """Return the flips per second during the last `seconds`, or since the oldest flip that is kept."""
        kept = range(max(0, self.count - KEPT), self.count)
        start = max(now - seconds, self._since if kept.start == 0 else self.shown[kept.start & _MASK])
        found = bisect_left(kept, start, key=lambda index: self.shown[index & _MASK])
        return (len(kept) - found) / max(now - start, 0.001)

    def status(self, *, pending: bool) -> FlipsStatus:
        """Return the status of the flips. `pending`: a flip is under way."""
        now = clock()
        first, end = max(0, self.count - SAMPLE) & _MASK, self.count & _MASK
        took = sorted(self.took[first:end] if first <= end else self.took[first:] + self.took[:end])
        latency = Latency(took[len(took) // 2], took[len(took) * 99 // 100], took[-1]) if took else None
        age = now - self.shown[(self.count - 1) & _MASK] if self.count else None
        return FlipsStatus(
            shown=self.count,
            age=age,
            fps_1s=self._rate(now, 1),
            fps_60s=self._rate(now, 60),
            latency=latency,
            pending=pending,
            total_latency=self.total,
            buckets=tuple(self.buckets),
        )
