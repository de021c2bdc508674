"""The times of periodic work. All of it that comes once a second comes at the same time, so that it wakes the processor once."""

from __future__ import annotations

import math

import trio

__all__ = ["next_multiple", "next_second"]


def next_multiple(period: float) -> float:
    """Return the next time that is a multiple of `period`, in seconds of trio's clock. A period is a part or a multiple of a second."""
    return (trio.current_time() // period + 1.0) * period


def next_second(after: float = 0.0) -> float:
    """Return the next time that is a whole number of seconds of trio's clock, and more than `after` seconds away."""
    return math.floor(trio.current_time() + after) + 1.0
