"""Sizes of surfaces. A compositor counts a surface in logical units and its monitors in pixels. The scale says how many pixels a unit has,
in 120ths (fractional-scale-v1).

"For toplevel surfaces, the size is rounded halfway away from zero" (the protocol): 1280x800 pixels at a scale of 1.5 are 853x533 units,
because 853 * 1.5 = 1279.5 is 1280, and 533 * 1.5 = 799.5 is 800. Where a compositor also asks for 853x533, a size that were computed from
1280:800 in units (852x533) would be one pixel smaller than the monitor, and its picture not sharp.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ONE", "fit", "fit_units", "pixels", "units", "units_of"]

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
    more = -(-(2 * length - 1) * ONE // (2 * scale))  # the least length that has at least these pixels
    less = max(1, more - 1)
    return less if length - pixels(less, scale) < pixels(more, scale) - length else more


def units_of(picture: Size, scale: int) -> Size:
    """Return the size in units of a picture whose pixels are the monitor's."""
    return units(picture[0], scale), units(picture[1], scale)


def fit(width: int, height: int, into_width: int, into_height: int) -> Size:
    """Return the largest size of the same aspect ratio that fits. A side that misses a pixel or less is rounded up to what it fits into."""
    if into_width * height <= into_height * width:
        return into_width, _whole(height * into_width, width, into_height)
    return _whole(width * into_height, height, into_width), into_height


def _whole(dividend: int, divisor: int, most: int) -> int:
    """Return a quotient as a whole number: `most` if that is the next one above it."""
    above = -(-dividend // divisor)
    return most if above >= most else max(1, dividend // divisor)


def fit_units(picture: Size, into: Size, scale: int) -> Size:
    """Return the largest size in units that fits into another one and gives a picture its aspect ratio on the monitor.

    A picture that is shorter by a unit at most keeps its own size and stays sharp: there are compositors that round a monitor's size up.
    """
    own = units_of(picture, scale)
    if 0 <= into[0] - own[0] <= 1 and 0 <= into[1] - own[1] <= 1:
        return own
    made = fit(*picture, pixels(into[0], scale), pixels(into[1], scale))
    return min(units(made[0], scale), into[0]), min(units(made[1], scale), into[1])
