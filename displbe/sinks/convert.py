"""Conversion of frames to XRGB8888, for formats that a card or compositor does not support.

It uses operations of bytes and large integers on whole rows, never on single pixels. These operations hold the interpreter's lock, and a
computing thread gives the lock up only every 5 ms. The event loop in the main thread needs the lock for the flips of all guests. Therefore
only one thread at a time converts, for all guests, and after every few rows it releases the lock for long enough that the main thread gets
it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from displbe.wire.formats import fourcc

__all__ = ["CONVERTED", "convert"]


AT_ONCE: Final = 65536
"""Bytes that are converted between two pauses; that takes about half a millisecond."""
PAUSE: Final = 50e-6
"""Seconds between two parts of a conversion, in which other threads run."""
_turn: Final = threading.Lock()


def _table(value: Callable[[int], int]) -> bytes:
    return bytes(value(byte) for byte in range(256))


class _Packed:
    """A format of 16 bits. A colour's 8 bits are found by a table for the low byte and one for the high byte, whose results are ORed."""

    def __init__(self, red: int, green: int, blue: int) -> None:
        places = ((0, blue), (blue, green), (blue + green, red))
        self.tables = [(self._part(shift, bits, 0), self._part(shift, bits, 8)) for shift, bits in places]

    @staticmethod
    def _part(shift: int, bits: int, position: int) -> bytes:
        # Widened to 8 bits by repeating the upper bits, as displays do; 4 to 6 bits need one repetition.
        def value(byte: int) -> int:
            raw = (byte << position) >> shift & ((1 << bits) - 1)
            return (raw << (8 - bits)) | (raw >> (2 * bits - 8))

        return _table(value)

    def planes(self, row: memoryview) -> list[bytes]:
        """Return blue, green and red of a row, a byte per pixel each."""
        low, high = bytes(row[0::2]), bytes(row[1::2])
        return [_either(low.translate(a), high.translate(b)) for a, b in self.tables]


class _Bytes:
    """A format of 24 bits: a byte each of blue, green and red."""

    def planes(self, row: memoryview) -> list[bytes]:
        """Return blue, green and red of a row, a byte per pixel each."""
        return [bytes(row[n::3]) for n in range(3)]


def _either(a: bytes, b: bytes) -> bytes:
    """Return the bitwise OR."""
    return (int.from_bytes(a, "little") | int.from_bytes(b, "little")).to_bytes(len(a), "little")


CONVERTED: Final[dict[int, _Packed | _Bytes]] = {
    fourcc("RG24"): _Bytes(),
    fourcc("RG16"): _Packed(5, 6, 5),
    fourcc("XR15"): _Packed(5, 5, 5),
    fourcc("AR15"): _Packed(5, 5, 5),
    fourcc("XR12"): _Packed(4, 4, 4),
    fourcc("AR12"): _Packed(4, 4, 4),
}
"""The formats that can be converted, by DRM format code."""


def convert(code: int, to: memoryview, to_stride: int, of: memoryview, of_stride: int, row: int, rows: int) -> None:
    """Convert `rows` rows of `row` bytes each. The caller has checked the sizes of both memories."""
    entry = CONVERTED[code]
    pixel_size = 3 if isinstance(entry, _Bytes) else 2
    width = row // pixel_size
    line = bytearray(b"\xff" * (4 * width))
    rows_at_once = max(1, AT_ONCE // row)
    for first in range(0, rows, rows_at_once):
        with _turn:
            for index in range(first, min(first + rows_at_once, rows)):
                # A private copy: the guest may draw at the same time.
                source = memoryview(bytes(of[index * of_stride : index * of_stride + row]))
                for plane, values in enumerate(entry.planes(source)):
                    line[plane::4] = values
                to[index * to_stride : index * to_stride + 4 * width] = line
            time.sleep(PAUSE)
