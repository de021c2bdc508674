"""Pixel formats: DRM's fourcc codes (include/uapi/drm/drm_fourcc.h), as FB_ATTACH names them."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["FORMATS", "Format", "fourcc", "fourcc_name", "likely_stride", "stride"]


def fourcc(text: str) -> int:
    """The u32 of a four-letter code: its letters, little-endian."""
    return int.from_bytes(text.encode("ascii"), "little")


def fourcc_name(code: int) -> str:
    """The letters of a code for a log line; a code that has none is shown as a number."""
    raw = code.to_bytes(4, "little")
    return raw.decode("ascii") if raw.isalnum() else f"{code:#010x}"


class Format(msgspec.Struct, frozen=True):
    """One packed pixel format. `bits` are those of one pixel; `opaque` is its twin without alpha (or itself)."""

    name: str
    code: int
    bits: int
    opaque: int


def _format(name: str, bits: int, opaque: str | None = None) -> Format:
    return Format(name, fourcc(name), bits, fourcc(opaque or name))


FORMATS: Final[dict[int, Format]] = {
    entry.code: entry
    for entry in (
        # drivers/gpu/drm/xen/xen_drm_front_conn.c: all that Linux's frontend offers its users.
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


def likely_stride(width: int, height: int, bits: int, octets: int) -> int:
    """Bytes from one row to the next of a buffer of which only its size in octets is known: displif.h does not say.

    Linux packs rows to whole octets; frontends of displ_be's time, to whole 32-bit words. They differ for odd widths of 8, 16 and
    24 bits. The packed one holds, unless the size is just that of the other (in octets, or rounded up to pages).
    """
    packed, words = stride(width, bits), (width * bits + 31) // 32 * 4
    if octets == packed * height or packed == words:
        return packed
    if octets == words * height or octets == -(-words * height // 4096) * 4096 != -(-packed * height // 4096) * 4096:
        return words
    return packed


def stride(width: int, bits: int) -> int:
    """Bytes from one row to the next of a display buffer, by Linux's formula.

    drm_gem_create_dumb in xen_drm_front.c: `pitch = DIV_ROUND_UP(width * bpp, 8)`; displif.h has no field for it.
    """
    return (width * bits + 7) // 8
