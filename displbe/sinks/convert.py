"""Conversion of frames to formats that a card or compositor supports, and turning of frames for panels that are mounted turned.

It uses operations of bytes and large integers on whole rows, never on single pixels. These operations hold the interpreter's lock, and a
computing thread gives the lock up only every 5 ms. The event loop in the main thread needs the lock for the flips of all guests. Therefore
only one thread at a time converts, for all guests, and after every few rows it releases the lock for long enough that the main thread gets
it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from displbe.wire.formats import FORMATS, fourcc

from .turn import Turn

__all__ = ["CONVERTED", "TARGETS", "XR24", "YUYV", "convert", "pixel_size", "turn_frame"]


AT_ONCE: Final = 65536
"""Bytes that are converted between two pauses; that takes about half a millisecond."""
PAUSE: Final = 50e-6
"""Seconds between two parts of a conversion, in which other threads run."""
_one_at_a_time: Final = threading.Lock()
XR24: Final = fourcc("XR24")
YUYV: Final = fourcc("YUYV")


def _table(value: Callable[[int], int]) -> bytes:
    return bytes(value(byte) for byte in range(256))


def _scaled(value: int, bits: int, to_bits: int) -> int:
    """Return a colour of `bits` bits with `to_bits` bits. More bits repeat the upper ones, as displays do; fewer bits are cut off."""
    if to_bits <= bits:
        return value >> (bits - to_bits)
    return value << (to_bits - bits) | value >> (2 * bits - to_bits)


class _Packed:
    """A format whose pixels are little-endian numbers of `size` bytes; each colour has a place in it: its lowest bit, and its bits.

    `work` is the time that a pixel takes to be read, in relation to other formats.

    A byte that several parts contribute to is their OR. Each part is found by a table for the byte that it comes from.
    """

    work: Final = 1

    def __init__(self, size: int, red: tuple[int, int], green: tuple[int, int], blue: tuple[int, int]) -> None:
        self.size = size
        self.places = places = blue, green, red
        self._reads = [list(self._read(*place)) for place in places]
        """For blue, green and red: the bytes of a pixel that contribute to the colour's 8 bits, and their tables; None: as it is."""
        self._writes = [list(self._write(index, places)) for index in range(size)]
        """For each byte of a pixel: the colours that contribute to it, and their tables; None: as it is."""

    def _read(self, shift: int, bits: int) -> Iterable[tuple[int, bytes | None]]:
        for index in range(self.size):
            if shift < 8 * index + 8 and 8 * index < shift + bits:
                whole = (shift, bits) == (8 * index, 8)
                yield index, None if whole else self._read_table(8 * index, shift, bits)

    @staticmethod
    def _read_table(position: int, shift: int, bits: int) -> bytes:
        return _table(lambda byte: _scaled((byte << position) >> shift & ((1 << bits) - 1), bits, 8))

    def _write(self, index: int, places: tuple[tuple[int, int], ...]) -> Iterable[tuple[int, bytes | None]]:
        rest = self._rest() >> 8 * index & 0xFF
        for colour, (shift, bits) in enumerate(places):
            if shift < 8 * index + 8 and 8 * index < shift + bits:
                whole = (shift, bits) == (8 * index, 8)
                yield colour, None if whole else self._write_table(8 * index, shift, bits, rest)

    @staticmethod
    def _write_table(position: int, shift: int, bits: int, rest: int) -> bytes:
        return _table(lambda value: (_scaled(value, 8, bits) << shift) >> position & 0xFF | rest)

    def _rest(self) -> int:
        """Return the bits of a pixel that belong to no colour: they are alpha, or have no meaning. They are set in what is written."""
        return (1 << 8 * self.size) - 1 - sum(((1 << bits) - 1) << shift for shift, bits in self.places)

    def filled(self, row: bytes) -> bytes:
        """Return a row of pixels with alpha and unused bits set."""
        rest, count = self._rest().to_bytes(self.size, "little"), len(row) // self.size
        if set(rest) - {0, 0xFF}:
            return _either((row, rest * count))
        made = bytearray(row)
        for index in range(self.size):
            if rest[index]:
                made[index :: self.size] = b"\xff" * count
        return bytes(made)

    def planes(self, row: bytes) -> list[bytes]:
        """Return blue, green and red of a row, a byte per pixel each."""
        return [_either(_through(row[index :: self.size], table) for index, table in parts) for parts in self._reads]

    def pack(self, line: bytearray, planes: list[bytes]) -> None:
        """Write a row of pixels over one whose bytes were all set before."""
        for index, parts in enumerate(self._writes):
            if parts:
                line[index :: self.size] = _either(_through(planes[colour], table) for colour, table in parts)


class _Yuyv:
    """YUYV: two pixels share Cb and Cr. The protocol names no matrix and no range, so DRM's default applies: BT.601, limited range.

    A colour is the sum of a part for each of Y, Cb and Cr, in lanes of 16 bits with 4 bits of fraction. An offset keeps sums positive.
    """

    _OFFSET: Final = 512
    size: Final = 2
    work: Final = 4

    def __init__(self) -> None:
        self._low_nibble = _table(lambda byte: byte & 0xF)
        luma = self._lane(lambda y: (y - 16) * 255 / 219 + self._OFFSET + 0.5)
        chroma = 255 / 224
        self._luma = luma
        self._blue = [(0, self._lane(lambda cb: self._OFFSET + 1.772 * chroma * (cb - 128)))]
        self._red = [(1, self._lane(lambda cr: self._OFFSET + 1.402 * chroma * (cr - 128)))]
        self._green = [
            (0, self._lane(lambda cb: self._OFFSET / 2 - 0.344136 * chroma * (cb - 128))),
            (1, self._lane(lambda cr: self._OFFSET / 2 - 0.714136 * chroma * (cr - 128))),
        ]
        # The integer part of a sum is 1024 + the colour: its high byte is 4 for a colour in the range of a byte.
        self._inside = _table(lambda high: 0xFF if high == 4 else 0)
        self._above = _table(lambda high: 0xFF if high > 4 else 0)

    @staticmethod
    def _lane(value: Callable[[int], float]) -> tuple[bytes, bytes]:
        """Return the tables for the low and the high byte of a lane."""
        lanes = [round(16 * value(byte)) for byte in range(256)]
        return bytes(lane & 0xFF for lane in lanes), bytes(lane >> 8 for lane in lanes)

    def planes(self, row: bytes) -> list[bytes]:
        """Return blue, green and red of a row, a byte per pixel each. A last pixel without a partner has no Cr of its own."""
        width = len(row) // 2
        if width % 2:
            row += row[-2:-1] + (row[-3:-2] if width > 1 else b"\x80")
        count = len(row) // 2
        chroma = []
        for first in (1, 3):
            both = bytearray(count)
            both[0::2] = both[1::2] = row[first::4]
            chroma.append(bytes(both))
        luma = self._wide(row[0::2], self._luma)
        found = []
        for parts in (self._blue, self._green, self._red):
            total = luma + sum(self._wide(chroma[which], tables) for which, tables in parts)
            data = (total >> 4).to_bytes(2 * count, "little")
            # Shifted by 4, a lane has the lowest 4 bits of the next one on top.
            high = data[1::2].translate(self._low_nibble)
            inside = int.from_bytes(data[0::2], "little") & int.from_bytes(high.translate(self._inside), "little")
            colour = inside | int.from_bytes(high.translate(self._above), "little")
            found.append(colour.to_bytes(count, "little")[:width])
        return found

    @staticmethod
    def _wide(values: bytes, tables: tuple[bytes, bytes]) -> int:
        """Return the lanes for these bytes as one number."""
        lanes = bytearray(2 * len(values))
        lanes[0::2], lanes[1::2] = values.translate(tables[0]), values.translate(tables[1])
        return int.from_bytes(lanes, "little")


def _through(values: bytes, table: bytes | None) -> bytes:
    return values if table is None else values.translate(table)


def _either(parts: Iterable[bytes]) -> bytes:
    """Return the bitwise OR of one or more strings of the same length."""
    first, *others = parts
    if not others:
        return first
    made = int.from_bytes(first, "little")
    for other in others:
        made |= int.from_bytes(other, "little")
    return made.to_bytes(len(first), "little")


def _packed_formats() -> dict[int, _Packed]:
    """Return the RGB formats of drm_fourcc.h that drivers have, the ones to convert to first: more colours, then without alpha."""
    made = {}
    # The bits of red, green, blue and of the rest of a pixel; the digits of the format's code.
    for digits, bits, rest in (
        ("24", (8, 8, 8), 8),
        ("30", (10, 10, 10), 2),
        ("15", (5, 5, 5), 1),
        ("12", (4, 4, 4), 4),
    ):
        size = (sum(bits) + rest) // 8
        step = bits[0]
        # From the highest bit: XRGB, XBGR, RGBX, BGRX, and the same with alpha.
        for letters in ("XR", "XB", "RX", "BX", "AR", "AB", "RA", "BA"):
            low = rest if letters[1] in "XA" else 0
            places = [(low + 2 * step, step), (low + step, step), (low, step)]
            made[fourcc(letters + digits)] = _Packed(size, *(places if "R" in letters else places[::-1]))
        if digits == "24":
            made[fourcc("RG24")] = _Packed(3, (16, 8), (8, 8), (0, 8))
            made[fourcc("BG24")] = _Packed(3, (0, 8), (8, 8), (16, 8))
        if digits == "30":
            made[fourcc("RG16")] = _Packed(2, (11, 5), (5, 6), (0, 5))
            made[fourcc("BG16")] = _Packed(2, (0, 5), (5, 6), (11, 5))
    return made


TARGETS: Final[dict[int, _Packed]] = _packed_formats()
"""The formats to which frames can be converted, by DRM format code, best first."""
_SOURCES: Final[dict[int, _Packed | _Yuyv]] = {code: _Yuyv() if code == YUYV else TARGETS[code] for code in FORMATS}
CONVERTED: Final[dict[int, _Packed]] = {
    code: TARGETS[code] for code in FORMATS if FORMATS[code].opaque in TARGETS and FORMATS[code].opaque != XR24
}
"""The guests' RGB formats that have to be converted where only XRGB8888 is supported, by DRM format code."""


def pixel_size(code: int) -> int:
    """Return the bytes of a pixel of any format of TARGETS or of wire.formats."""
    return TARGETS[code].size if code in TARGETS else FORMATS[code].bits // 8


def convert(
    code: int,
    to: memoryview,
    to_stride: int,
    of: memoryview,
    of_stride: int,
    row: int,
    rows: int,
    into: int = XR24,
) -> None:
    """Convert `rows` rows of `row` bytes each, of format `code`, to format `into`. Alpha and unused bits are set.

    The caller has checked the sizes of both memories.
    """
    source, target = _SOURCES[code], TARGETS[into]
    line = bytearray(b"\xff" * (row // source.size * target.size))
    has_same_colours = isinstance(source, _Packed) and (source.size, source.places) == (target.size, target.places)

    def convert_row(index: int) -> None:
        # A private copy: the guest may draw at the same time.
        pixels = bytes(of[index * of_stride : index * of_stride + row])
        if has_same_colours:
            line[:] = target.filled(pixels)
        else:
            target.pack(line, source.planes(pixels))
        to[index * to_stride : index * to_stride + len(line)] = line

    _in_parts(rows, row * source.work, convert_row)


def turn_frame(to: memoryview, to_stride: int, of: memoryview, width: int, height: int, size: int, turn: Turn) -> None:
    """Turn a packed frame of `width` times `height` pixels of `size` bytes, 2 to 4. The target has the size `turn.size(width, height)`.

    The frame is private memory: it is read once for each of its columns or rows, so that the target is written from its first byte to its
    last. The caller has checked the sizes of both memories.
    """
    across, down = turn.size(width, height)
    line = bytearray(size * across)

    def turn_row(index: int) -> None:
        _turned_row(line, of, width, height, size, turn, index)
        to[index * to_stride : index * to_stride + len(line)] = line

    _in_parts(down, len(line), turn_row)


def _in_parts(rows: int, work: int, do_row: Callable[[int], None]) -> None:
    """Call `do_row` for each row, with a pause after each AT_ONCE bytes; a row takes as much time as `work` bytes."""
    rows_at_once = max(1, AT_ONCE // work)
    for first in range(0, rows, rows_at_once):
        with _one_at_a_time:
            for index in range(first, min(first + rows_at_once, rows)):
                do_row(index)
            time.sleep(PAUSE)


def _turned_row(line: bytearray, of: memoryview, width: int, height: int, size: int, turn: Turn, index: int) -> None:
    """Write row `index` of a turned frame into `line`: a column of the frame, or for half a turn a row."""
    match turn:
        case Turn.LEFT:  # the rightmost column is on top
            pixels = slice(width - 1 - index, None, width)
        case Turn.RIGHT:  # the leftmost column is on top, from below
            pixels = slice((height - 1) * width + index, None, -width)
        case Turn.HALF:
            last = (height - 1 - index) * width
            pixels = slice(last + width - 1, last - 1 if last else None, -1)
        case Turn.NONE:
            pixels = slice(index * width, (index + 1) * width)
    if size == 3:
        for byte in range(3):
            line[byte::3] = of[byte::3][pixels]
    elif size == 4:
        memoryview(line).cast("I")[:] = of.cast("I")[pixels]
    else:
        memoryview(line).cast("H")[:] = of.cast("H")[pixels]
