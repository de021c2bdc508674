"""EDIDs: generated for a connector without a monitor, and a monitor's EDID cut to the size of a guest's buffer.

An EDID (VESA E-EDID 1.4) consists of blocks of 128 bytes whose sum is 0 modulo 256. A generated first block has the monitor's name and one
detailed timing with CVT reduced blanking (version 1). A mode that exceeds that timing's fields, with more than 4095 pixels or
655.35 MHz, goes into a DisplayID block (version 1.3, a type I timing); the first block then has a mode of the same aspect ratio that fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

import msgspec

__all__ = ["BLOCK", "descriptors", "is_edid", "make_edid", "sanitise", "sideways"]

BLOCK: Final = 128
"""Bytes of a block."""
MAX_NAME: Final = 13
"""Characters of the monitor's name."""

_MAGIC: Final = bytes((0, 255, 255, 255, 255, 255, 255, 0))
_EXTENSIONS: Final = 126
_YEAR: Final = 2026
_DPI: Final = 96
"""The pixel density in the EDID, in dots per inch. Desktops regard it as normal and do not scale their pictures."""
_SRGB: Final = bytes((0xEE, 0x91, 0xA3, 0x54, 0x4C, 0x99, 0x26, 0x0F, 0x50, 0x54))
"""The chromaticities of sRGB."""
_SRGB_DEFAULT: Final = 0x04
"""The feature bit that says that the chromaticities are those of sRGB."""
_NO_STANDARD_TIMINGS: Final = bytes((1, 1) * 8)
_DUMMY: Final = bytes((0, 0, 0, 0x10)) + bytes(14)
_SLOWEST: Final = 1000
"""10 MHz in units of 10 kHz: the slowest clock that EDID allows."""
_PRODUCT: Final = b"VM"
_MAKER: Final = b"XEN"
_CTA: Final = 0x02
_DISPLAYID: Final = 0x70
_STANDALONE: Final = 3
"""DisplayID product type: standalone display device."""
_MODES: Final = Struct("<HBBBBBBBBBB")
_TYPE_I: Final = Struct("<3sBHHHHHHHH")
_PARAMETERS: Final = Struct("<HHHHBBBB")


class _Timing(msgspec.Struct, frozen=True):
    """A mode: horizontal values in pixels, vertical ones in rows, and the clock in units of 10 kHz."""

    clock: int
    width: int
    height: int
    h_blank: int
    h_front: int
    h_sync: int
    v_blank: int
    v_front: int
    v_sync: int

    @property
    def line_khz(self) -> float:
        """The horizontal frequency in kHz."""
        return self.clock * 10 / (self.width + self.h_blank)

    @property
    def detailed(self) -> bool:
        """Whether the mode fits into a detailed timing descriptor."""
        return self.width <= 0xFFF and self.height <= 0xFFF and self.v_blank <= 0xFFF and self.clock <= 0xFFFF


def _reduced_blanking(width: int, height: int, refresh: int) -> _Timing:
    """Return a mode with the reduced blanking of CVT 1.1. The width is kept; CVT would make it a multiple of 8."""
    sync = _vertical_sync(width, height)
    row_us = (1e6 / refresh - 460) / height
    blank = max(int(460 / row_us) + 1, 3 + sync + 6)
    exact = refresh * (width + 160) * (height + blank) // 10_000
    # CVT's clocks are multiples of 250 kHz. The smallest modes keep the exact clock: rounded, their refresh rate would be far off.
    clock = exact // 25 * 25 if exact >= 2500 else exact
    timing = _Timing(clock, width, height, 160, 48, 32, blank, 3, sync)
    return timing if clock >= _SLOWEST else _padded(timing, refresh)


def _padded(timing: _Timing, refresh: int) -> _Timing:
    """Return the mode with more blanking after the sync, so that it needs at least the slowest clock that EDID allows."""
    total = -(-_SLOWEST * 10_000 // refresh)
    rows = max(timing.height + timing.v_blank, -(-total // (timing.width + 4000)))
    columns = -(-total // rows)
    return msgspec.structs.replace(
        timing,
        clock=refresh * columns * rows // 10_000,
        h_blank=max(columns - timing.width, timing.h_blank),
        v_blank=rows - timing.height,
    )


def _vertical_sync(width: int, height: int) -> int:
    """Return the rows of vertical sync, by which CVT marks the aspect ratio."""
    for (x, y), rows in {(4, 3): 4, (16, 9): 5, (16, 10): 6, (5, 4): 7, (15, 9): 7}.items():
        if width * y == height * x:
            return rows
    return 10


def _millimetres(pixels: int) -> int:
    return round(pixels * 25.4 / _DPI)


def _detailed(timing: _Timing, width_mm: int, height_mm: int) -> bytes:
    """Return a detailed timing descriptor with digital separate sync, horizontal positive, vertical negative, as in CVT-RB."""
    t = timing
    return _MODES.pack(
        t.clock,
        t.width & 0xFF,
        t.h_blank & 0xFF,
        t.width >> 8 << 4 | t.h_blank >> 8,
        t.height & 0xFF,
        t.v_blank & 0xFF,
        t.height >> 8 << 4 | t.v_blank >> 8,
        t.h_front & 0xFF,
        t.h_sync & 0xFF,
        (t.v_front & 0xF) << 4 | t.v_sync & 0xF,
        t.h_front >> 8 << 6 | t.h_sync >> 8 << 4 | t.v_front >> 4 << 2 | t.v_sync >> 4,
    ) + bytes((width_mm & 0xFF, height_mm & 0xFF, width_mm >> 8 << 4 | height_mm >> 8, 0, 0, 0x1A))


def _ranges(timings: list[_Timing], refresh: int) -> bytes:
    """Return the range limits descriptor, or a dummy descriptor where a value does not fit into its byte."""
    low_khz = int(min(timing.line_khz for timing in timings))
    high_khz = int(max(timing.line_khz for timing in timings)) + 1
    low_hz, high_hz = max(refresh - 1, 1), refresh + 1
    tens_of_mhz = -(-max(timing.clock for timing in timings) // 1000)
    flags, limits = 0, bytearray()
    for low, high, shift in ((low_hz, high_hz, 0), (low_khz, high_khz, 2)):
        # Above 255: one flag adds 255 to the maximum, both flags add 255 to the minimum as well.
        both = low > 255
        flags |= (0b11 if both else 0b10 if high > 255 else 0) << shift
        limits += bytes((min(low - 255 * both, 255), min(high - 255 * (high > 255), 255)))
        if not 1 <= low <= 510 or high > 510:
            return _DUMMY
    if tens_of_mhz > 255:
        return _DUMMY
    return bytes((0, 0, 0, 0xFD, flags, *limits, tens_of_mhz, 1, 0x0A)) + b" " * 6


def _name(name: str) -> bytes:
    """Return the descriptor of the monitor's name: 13 printable characters, or fewer with a newline and blanks after them."""
    text = "".join(c for c in name if c.isascii() and c.isprintable())[:MAX_NAME].strip() or "Xen"
    encoded = text.encode("ascii")
    return bytes((0, 0, 0, 0xFC, 0)) + (encoded + b"\n" if len(encoded) < MAX_NAME else encoded).ljust(MAX_NAME)


def _with_checksum(data: bytes) -> bytes:
    """Append the checksum, which makes the sum 0 modulo 256."""
    return data + bytes((-sum(data) & 0xFF,))


def _manufacturer_id(maker: bytes) -> bytes:
    """Return a manufacturer's id: three capital letters, 5 bits each, in 2 bytes."""
    one, two, three = (letter - 64 for letter in maker)
    return (one << 10 | two << 5 | three).to_bytes(2, "big")


def _displayid(timing: _Timing, width_mm: int, height_mm: int) -> bytes:
    """Return a DisplayID extension block: one type I timing, marked as preferred, and the other data blocks that are mandatory."""
    t = timing
    product = _MAKER + _PRODUCT + bytes(4) + bytes((0xFF, _YEAR - 2000, 0))
    # Size in tenths of millimetres and in pixels; no audio or power features; gamma 2.2; aspect ratio - 1 in hundredths; 8 bits per colour.
    shape = min(round(100 * max(t.width, t.height) / min(t.width, t.height)) - 100, 255)
    display = _PARAMETERS.pack(10 * width_mm, 10 * height_mm, t.width, t.height, 0, 120, shape, 0x77)
    interface = bytes((0xB1, 0x00, 0x02)) + bytes(7)  # one link of a proprietary interface, RGB of 8 bits
    # Each field of a timing holds its value - 1.
    mode = _TYPE_I.pack(
        (t.clock - 1).to_bytes(3, "little"),
        0x80 | _aspect(t.width, t.height),
        t.width - 1,
        t.h_blank - 1,
        0x8000 | (t.h_front - 1),
        t.h_sync - 1,
        t.height - 1,
        t.v_blank - 1,
        t.v_front - 1,
        t.v_sync - 1,
    )
    parts = ((0x00, product), (0x01, display), (0x0F, interface), (0x03, mode))
    blocks = b"".join(bytes((tag, 0, len(data))) + data for tag, data in parts)
    section = bytes((0x13, 121, _STANDALONE, 0)) + blocks.ljust(121, b"\0")
    return _with_checksum(bytes((_DISPLAYID,)) + _with_checksum(section))


def _aspect(width: int, height: int) -> int:
    shapes = ((1, 1), (5, 4), (4, 3), (15, 9), (16, 9), (16, 10), (64, 27), (256, 135))
    return next((n for n, (x, y) in enumerate(shapes) if width * y == height * x), 8)


def _fitting(width: int, height: int, refresh: int) -> _Timing:
    """Return the mode, its size divided by the smallest whole number with which it fits into a detailed timing descriptor."""
    for divisor in range(1, max(width, height) + 1):
        timing = _reduced_blanking(max(width // divisor, 1), max(height // divisor, 1), refresh)
        if timing.detailed:
            return timing
    raise ValueError(f"no mode of {width}x{height} at {refresh} Hz")


def make_edid(width: int, height: int, name: str, refresh: int = 60) -> bytes:
    """Return the EDID of a monitor with this one mode, in pixels and Hz: one block, or two where the mode needs a DisplayID block.

    Raises ValueError for sizes outside 1 to 16384 and refresh rates outside 1 to 400.
    """
    if not (1 <= width <= 16384 and 1 <= height <= 16384 and 1 <= refresh <= 400):
        raise ValueError(f"no mode of {width}x{height} at {refresh} Hz")
    native = _reduced_blanking(width, height, refresh)
    first = _fitting(width, height, refresh)
    timings = [first] if first == native else [first, native]
    width_mm, height_mm = _millimetres(width), _millimetres(height)
    if not (100 <= width_mm < 2560 and 100 <= height_mm < 2560):
        # The size does not fit into a byte of centimetres, or is implausibly small. 0 stands for an unknown size.
        width_mm = height_mm = 0
    base = b"".join(
        (
            _MAGIC,
            _manufacturer_id(_MAKER),
            _PRODUCT,
            bytes(4),
            bytes((0xFF, _YEAR - 1990)),  # model year
            b"\x01\x04",
            bytes((0xA0, width_mm // 10, height_mm // 10, 120)),  # digital, 8 bits per colour; gamma 2.2
            bytes((0x04 | 0x02 * (first == native),)),  # sRGB; whether the first timing is the native one
            _SRGB,
            bytes(3),
            _NO_STANDARD_TIMINGS,
            _detailed(first, width_mm, height_mm),
            _name(name),
            _ranges(timings, refresh),
            _DUMMY,
            bytes((len(timings) - 1,)),
        )
    )
    return _with_checksum(base) + (_displayid(native, width_mm, height_mm) if len(timings) > 1 else b"")


def is_edid(data: bytes) -> bool:
    """Return whether this begins with a whole first block."""
    return len(data) >= BLOCK and data.startswith(_MAGIC)


def descriptors(edid: bytes) -> Iterator[bytes]:
    """Yield the four descriptors of the first block: detailed timings, texts, ranges."""
    for at in (54, 72, 90, 108):
        yield edid[at : at + 18]


def sideways(edid: bytes, width: int, height: int, refresh: int) -> bytes:
    """Return the EDID of the same monitor as it is seen when it is mounted sideways; empty if it is invalid.

    `width` and `height` in pixels are as they are seen. It has this one mode, and from the monitor's own EDID its maker, product, serial
    number, name and colours, and its physical size with the sides swapped. Raises ValueError, as `make_edid` does.
    """
    if not is_edid(edid):
        return b""
    made = make_edid(width, height, "", refresh)
    base, rest = bytearray(made[: BLOCK - 1]), made[BLOCK:]
    base[8:18] = edid[8:18]  # maker, product, serial number, week and year
    base[21], base[22] = edid[22], edid[21]  # centimetres; 0: unknown
    base[23] = edid[23]  # gamma
    base[24] &= ~_SRGB_DEFAULT
    base[25:35] = edid[25:35]  # chromaticities
    if edid[54:56] != b"\0\0":  # a detailed timing, which has the size in millimetres
        base[66], base[67] = edid[67], edid[66]
        base[68] = edid[68] >> 4 | (edid[68] & 0xF) << 4
    else:
        base[66:69] = bytes(3)
    for descriptor in descriptors(edid):
        if descriptor[:3] == b"\0\0\0" and descriptor[3] == 0xFC:
            base[72:90] = descriptor
        elif descriptor[:3] == b"\0\0\0" and descriptor[3] == 0xFF:
            base[108:126] = descriptor
    return _with_checksum(bytes(base)) + rest


def sanitise(edid: bytes, room: int) -> bytes:
    """Return a monitor's EDID, cut to the whole blocks that fit into `room` bytes, and made consistent; empty if it is invalid."""
    if not is_edid(edid):
        return b""
    count = min(_blocks(edid), len(edid) // BLOCK, room // BLOCK)
    if count < 1:
        return b""
    blocks = [bytearray(edid[n * BLOCK : (n + 1) * BLOCK]) for n in range(count)]
    blocks[0][_EXTENSIONS] = min(blocks[0][_EXTENSIONS], count - 1)
    if count > 1 and (at := _override(blocks[1])) is not None:
        blocks[1][at] = count - 1
    return b"".join(_with_checksum(bytes(block[:-1])) for block in blocks)


def _blocks(edid: bytes) -> int:
    """Return the number of blocks that an EDID claims to have."""
    second = edid[BLOCK : 2 * BLOCK]
    at = _override(second) if len(second) == BLOCK and edid[_EXTENSIONS] else None
    return 1 + (second[at] if at is not None else edid[_EXTENSIONS])


def _override(block: bytes | bytearray) -> int | None:
    """Return the offset of the extension count of an HDMI Forum override (HF-EEODB), the first data block of the first CTA block."""
    # A data block with the extended tag code (7), at least two bytes and extended tag 0x78. Byte 2 is the offset of the end of data blocks.
    if block[0] == _CTA and block[1] >= 3 and block[2] >= 7 and block[4] >> 5 == 7 and block[4] & 31 >= 2:
        return 6 if block[5] == 0x78 and block[6] else None
    return None
