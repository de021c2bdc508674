"""The times of periodic work. All of it that comes with the same period comes at the same time, so that it wakes the processor once."""

from __future__ import annotations

import trio

__all__ = ["next_multiple"]


def next_multiple(period: float) -> float:
    """Return the next time that is a multiple of `period`, in seconds of trio's clock. A period is a part or a multiple of a second."""
    return (trio.current_time() // period + 1.0) * period
