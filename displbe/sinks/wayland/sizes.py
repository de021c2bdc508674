"""Sizes of surfaces. A compositor counts a surface in logical units and its monitors in pixels. The scale says how many pixels a unit has,
in 120ths (fractional-scale-v1).

"For toplevel surfaces, the size is rounded halfway away from zero" (the protocol): 1280x800 pixels at a scale of 1.5 are 853x533 units,
because 853 * 1.5 = 1279.5 is 1280, and 533 * 1.5 = 799.5 is 800. Where a compositor also asks for 853x533, a size that were computed from
1280:800 in units (852x533) would be one pixel smaller than the monitor, and its picture not sharp.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ONE", "fit_units", "pixels", "units", "units_of"]

ONE: Final = 120
"""The scale of one pixel for each unit."""

Size = tuple[int, int]


def pixels(length: int, scale: int) -> int:
    """Return the pixels that a length in units has on a monitor of this scale."""
    return (2 * length * scale + ONE) // (2 * ONE)


def units(length: int, scale: int) -> int:
    """Return a length in units that has this many pixels; where there is none, the one whose pixels are nearest, and rather more than less.

    Above a scale of 1 there is none for some lengths: at 1.5, 682 units are 1023 pixels, and 683 are 1025.
    """
    if scale <= ONE:  # several lengths may do
        return max(1, (2 * length * ONE + scale) // (2 * scale))
    more = _units_at_least(length, scale)
    less = max(1, more - 1)
    return less if length - pixels(less, scale) < pixels(more, scale) - length else more


def _units_at_least(length: int, scale: int) -> int:
    """Return the least length in units that has at least this many pixels."""
    return max(1, -(-(2 * length - 1) * ONE // (2 * scale)))


def units_of(picture: Size, scale: int) -> Size:
    """Return the size in units of a picture whose pixels are the monitor's."""
    return units(picture[0], scale), units(picture[1], scale)


def fit_units(picture: Size, into: Size, scale: int) -> Size:
    """Return the largest size in units that fits into another one and gives a picture its aspect ratio on the monitor.

    A picture that is shorter by a unit at most keeps its own size and stays sharp: there are compositors that round a monitor's size up.
    One that is longer by a unit at most fills what it is fitted into: others round it down where no length in units has the monitor's
    pixels.
    """
    own = units_of(picture, scale)
    if abs(into[0] - own[0]) <= 1 and abs(into[1] - own[1]) <= 1:
        return min(own[0], into[0]), min(own[1], into[1])
    (width, height), across, down = picture, pixels(into[0], scale), pixels(into[1], scale)
    # Rounded up, so that the same side is full again when a compositor asks for the result: no window shrinks each time that it is asked.
    if across * height <= down * width:
        return into[0], min(_units_at_least(-(-across * height // width), scale), into[1])
    return min(_units_at_least(-(-down * width // height), scale), into[0]), into[1]
