"""The pixel formats of FB_ATTACH, by their DRM fourcc codes (include/uapi/drm/drm_fourcc.h)."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["FORMATS", "Format", "fourcc", "fourcc_name", "likely_stride", "stride"]


def fourcc(text: str) -> int:
    """Return the u32 of a four-letter code: its letters, little-endian."""
    return int.from_bytes(text.encode("ascii"), "little")


def fourcc_name(code: int) -> str:
    """Return the letters of a code for a log line, or a hexadecimal number for a code without letters."""
    raw = code.to_bytes(4, "little")
    return raw.decode("ascii") if raw.isalnum() else f"{code:#010x}"


class Format(msgspec.Struct, frozen=True):
    """A packed pixel format. `bits` is the size of a pixel; `opaque` is the code of the same format without alpha."""

    name: str
    code: int
    bits: int
    opaque: int


def _format(name: str, bits: int, opaque: str | None = None) -> Format:
    return Format(name, fourcc(name), bits, fourcc(opaque or name))


FORMATS: Final[dict[int, Format]] = {
    entry.code: entry
    for entry in (
        # All formats that Linux's frontend offers (drivers/gpu/drm/xen/xen_drm_front_conn.c).
        _format("RG16", 16),
        _format("RG24", 24),
        _format("XR24", 32),
        _format("AR24", 32, "XR24"),
        _format("XR12", 16),
        _format("AR12", 16, "XR12"),
        _format("XR15", 16),
        _format("AR15", 16, "XR15"),
        _format("YUYV", 16),
    )
}


def likely_stride(width: int, height: int, bits: int, size: int) -> int:
    """Guess the stride of a buffer of `size` bytes: bytes from one row to the next. displif.h has no field for it.

    Linux pads rows to whole bytes; older frontends (of displ_be's time) pad them to whole 32-bit words. The two differ for odd widths at
    8, 16 and 24 bits. Linux's stride is assumed, unless only the other one fits the size, exactly or rounded up to whole pages.
    """
    packed, words = stride(width, bits), (width * bits + 31) // 32 * 4
    if size == packed * height or packed == words:
        return packed
    if size == words * height or size == -(-words * height // 4096) * 4096 != -(-packed * height // 4096) * 4096:
        return words
    return packed


def stride(width: int, bits: int) -> int:
    """Return the stride of a display buffer by Linux's formula: bytes from one row to the next.

    drm_gem_create_dumb in xen_drm_front.c: `pitch = DIV_ROUND_UP(width * bpp, 8)`; displif.h has no field for it.
    """
    return (width * bits + 7) // 8
