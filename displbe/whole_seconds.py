"""The times of periodic work. All of it that comes once a second comes at the same time, so that it wakes the processor once."""

from __future__ import annotations

import trio

__all__ = ["next_multiple"]


def next_multiple(period: float = 1.0, after: float = 0.0) -> float:
    """Return the next time that is a multiple of `period`, and more than `after` seconds away, in seconds of trio's clock.

    A period is a part or a multiple of a second.
    """
    return ((trio.current_time() + after) // period + 1.0) * period
