"""Frames in a format that the other side cannot show, as XRGB8888, which it always can.

By whole-row operations of bytes and large integers: a pixel is nowhere touched by itself. All of them hold the interpreter's lock,
and a thread that computes gives that up only every 5 ms, while every guest's flips need the loop in the main thread. So one thread
at a time converts, of all guests', a few rows, and then lets go of the lock for as long as the main thread needs to take it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from displbe.wire.formats import fourcc

__all__ = ["CONVERTED", "convert"]


AT_ONCE: Final = 65536
"""Octets that are converted, about half a millisecond, before others have their turn."""
PAUSE: Final = 50e-6
"""Seconds of their turn."""
_turn: Final = threading.Lock()


def _table(value: Callable[[int], int]) -> bytes:
    return bytes(value(octet) for octet in range(256))


class _Packed:
    """A format of 16 bits: a colour's eight bits are the sum of what the low and the high octet tell of it."""

    def __init__(self, red: int, green: int, blue: int) -> None:
        places = ((0, blue), (blue, green), (blue + green, red))
        self.tables = [(self._part(shift, bits, 0), self._part(shift, bits, 8)) for shift, bits in places]

    @staticmethod
    def _part(shift: int, bits: int, octet: int) -> bytes:
        # Widened by repeating the upper bits, as displays do; with five bits or six, that is no more than one repetition.
        def value(byte: int) -> int:
            raw = (byte << octet) >> shift & ((1 << bits) - 1)
            return (raw << (8 - bits)) | (raw >> (2 * bits - 8))

        return _table(value)

    def planes(self, row: memoryview) -> list[bytes]:
        """Blue, green and red of a row."""
        low, high = bytes(row[0::2]), bytes(row[1::2])
        return [_either(low.translate(a), high.translate(b)) for a, b in self.tables]


class _Bytes:
    """Blue, green, red, an octet each."""

    def planes(self, row: memoryview) -> list[bytes]:
        """Blue, green and red of a row."""
        return [bytes(row[n::3]) for n in range(3)]


def _either(a: bytes, b: bytes) -> bytes:
    """Bit by bit: no bit is in both."""
    return (int.from_bytes(a, "little") | int.from_bytes(b, "little")).to_bytes(len(a), "little")


CONVERTED: Final[dict[int, _Packed | _Bytes]] = {
    fourcc("RG24"): _Bytes(),
    fourcc("RG16"): _Packed(5, 6, 5),
    fourcc("XR15"): _Packed(5, 5, 5),
    fourcc("AR15"): _Packed(5, 5, 5),
    fourcc("XR12"): _Packed(4, 4, 4),
    fourcc("AR12"): _Packed(4, 4, 4),
}
"""The formats that can be converted."""


def convert(code: int, to: memoryview, to_stride: int, of: memoryview, of_stride: int, row: int, rows: int) -> None:
    """Convert `rows` rows of `row` octets. The memories are as large as that needs."""
    entry = CONVERTED[code]
    octets = 3 if isinstance(entry, _Bytes) else 2
    width = row // octets
    line = bytearray(b"\xff" * (4 * width))
    several = max(1, AT_ONCE // row)
    for first in range(0, rows, several):
        with _turn:
            for index in range(first, min(first + several, rows)):
                # A private copy first: the guest may draw meanwhile.
                source = memoryview(bytes(of[index * of_stride : index * of_stride + row]))
                for plane, values in enumerate(entry.planes(source)):
                    line[plane::4] = values
                to[index * to_stride : index * to_stride + 4 * width] = line
            time.sleep(PAUSE)
