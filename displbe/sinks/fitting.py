"""Fitting a picture into another size without changing its aspect ratio."""

from __future__ import annotations

__all__ = ["fit"]


def fit(width: int, height: int, into_width: int, into_height: int) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio that fits. A side that misses less than a pixel is rounded up to what it fits into:
    1366x768 fills 1920x1080, where its exact height would be 1079.47.
    """
    if into_width * height <= into_height * width:
        return into_width, _whole(height * into_width, width, into_height)
    return _whole(width * into_height, height, into_width), into_height


def _whole(dividend: int, divisor: int, most: int) -> int:
    """Return a quotient as a whole number: `most` if that is the next one above it."""
    above = -(-dividend // divisor)
    return most if above >= most else max(1, dividend // divisor)
