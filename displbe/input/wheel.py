"""Detents of a scroll wheel, counted from the finer units that high-resolution wheels and compositors report."""

from __future__ import annotations

from typing import Final

__all__ = ["UNITS_PER_DETENT", "WheelDetents"]

UNITS_PER_DETENT: Final = 120
"""REL_WHEEL_HI_RES and wl_pointer.axis_value120: units of one detent."""


class WheelDetents:
    """Adds up units until they make whole detents. kbdif has no finer unit than a detent."""

    def __init__(self) -> None:
        self._units = 0

    def turn(self, units: int) -> None:
        """Add units, positive up. A change of direction discards the incomplete detent of the other direction."""
        if (self._units < 0) != (units < 0):
            self._units = 0
        self._units += units

    def take(self) -> int:
        """Return the whole detents since the last call; the remainder stays for the next one."""
        detents = int(self._units / UNITS_PER_DETENT)
        self._units -= detents * UNITS_PER_DETENT
        return detents
