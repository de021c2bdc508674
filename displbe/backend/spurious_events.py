"""Spurious events: notifications of a port for which there is no work.

A guest may notify without end. The kernel delays the event channels of its own backends for this reason (XSA-332), but not those of a
program. So the port stays masked after a spurious event, longer after each one, and only that guest waits.
"""

from __future__ import annotations

from typing import Final

__all__ = ["SpuriousEvents"]

TOLERATED: Final = 2
"""Spurious events in a row after which the port is still armed at once."""
FIRST: Final = 0.001
LAST: Final = 1.0
"""Seconds that the port stays masked: the first time, and at most."""


class SpuriousEvents:
    """Counts the spurious events of one port."""

    def __init__(self) -> None:
        self.total = 0
        """All spurious events."""
        self.in_a_row = 0
        """Spurious events since the last one for which there was work."""

    def add(self) -> float:
        """Count a spurious event. Return the seconds that the port has to stay masked; 0: it is armed at once."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row <= TOLERATED:
            return 0.0
        return min(FIRST * (1 << min(self.in_a_row - TOLERATED, 10)), LAST)

    def reset(self) -> None:
        """There was work: the next spurious event is the first one again."""
        self.in_a_row = 0
