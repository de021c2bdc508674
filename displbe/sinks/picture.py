"""Conversion of guests' pixels to Pillow images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from displbe.wire.formats import fourcc

from .base import Geometry, Part
from .convert import YUYV
from .frame_copy import copy_frame, frame_rows

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["image"]

# DRM format (little-endian) -> Pillow's mode and raw mode.
_RAW_MODES: Final[dict[int, tuple[str, str]]] = {
    fourcc("XR24"): ("RGB", "BGRX"),
    fourcc("AR24"): ("RGB", "BGRX"),
    fourcc("RG24"): ("RGB", "BGR"),
    fourcc("RG16"): ("RGB", "BGR;16"),
    fourcc("XR15"): ("RGB", "BGR;15"),
    fourcc("AR15"): ("RGB", "BGR;15"),
    fourcc("XR12"): ("RGB", "RGB;4B"),
    fourcc("AR12"): ("RGB", "RGB;4B"),
}


def image(view: memoryview, shape: Geometry, part: Part) -> Image.Image:
    """Return a private copy of a part's pixels. All formats of wire.formats are supported."""
    from PIL import Image  # late: it takes 2 MiB, and few daemons ever make a picture

    rows = frame_rows(shape, part)
    data = memoryview(bytearray(rows.size))
    copy_frame(rows, view, data, rows.row)
    if shape.fourcc == YUYV:
        return _from_yuyv(data, part.width, part.height)
    mode, raw = _RAW_MODES[shape.fourcc]
    made = Image.frombytes(mode, (part.width, part.height), data, "raw", raw, rows.row, 1)
    # Pillow has no raw mode for 4 bits each of blue, green, red: they were read as red, green, blue.
    return Image.merge(mode, made.split()[::-1]) if raw == "RGB;4B" else made


def _from_yuyv(data: memoryview, width: int, height: int) -> Image.Image:
    """Convert YUYV: two pixels share Cb and Cr. The protocol names no matrix and no range, so DRM's default applies: BT.601, limited."""
    from PIL import Image

    luma, colour = Image.frombytes("LA", (width, height), data).split()
    even = width + width % 2
    chroma = colour.crop((0, 0, even, height)).tobytes()
    halves = [Image.frombytes("L", (even // 2, height), chroma[which::2]) for which in (0, 1)]
    blue, red = (half.resize((even, height), Image.Resampling.NEAREST).crop((0, 0, width, height)) for half in halves)
    # Pillow's YCbCr has the full range.
    luma = luma.point([round((y - 16) * 255 / 219) for y in range(256)])
    blue, red = (half.point([round((c - 128) * 255 / 224 + 128) for c in range(256)]) for half in (blue, red))
    return Image.merge("YCbCr", (luma, blue, red)).convert("RGB")
