"""Spurious events: notifications of a port for which there is no work.

A guest may notify without end. The kernel therefore delays the event channels of its own backends (XSA-332), but not those of a program.
So displbe leaves the port masked after a spurious event, for longer each time. Only that guest waits.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SpuriousEvents"]

TOLERATED: Final = 2
"""Spurious events in a row that do not delay the port."""
FIRST: Final = 0.001
LAST: Final = 1.0
"""The unit and the maximum of the delay, in seconds. The first delay is twice `FIRST`; each further one is twice as long."""


class SpuriousEvents:
    """Counts the spurious events of one port."""

    def __init__(self) -> None:
        self.total = 0
        """All spurious events."""
        self.in_a_row = 0
        """Spurious events since the last event for which there was work."""

    def add(self) -> float:
        """Count a spurious event. Return the seconds that the port has to stay masked; 0: the caller rearms it at once."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row <= TOLERATED:
            return 0.0
        return min(FIRST * (1 << min(self.in_a_row - TOLERATED, 10)), LAST)

    def reset(self) -> None:
        """Begin a new row: there was work."""
        self.in_a_row = 0
