"""Pixels as Pillow's images."""

from __future__ import annotations

from typing import Final

from PIL import Image

from displbe.wire.formats import FORMATS, fourcc
from displbe.xen.memory import copy_rows

from .base import Geometry, Part

__all__ = ["RAW_MODES", "image"]

# Pillow's names for the layouts of DRM's little-endian formats.
RAW_MODES: Final[dict[int, tuple[str, str]]] = {
    fourcc("XR24"): ("RGB", "BGRX"),
    fourcc("AR24"): ("RGB", "BGRX"),
    fourcc("RG24"): ("RGB", "BGR"),
    fourcc("RG16"): ("RGB", "BGR;16"),
    fourcc("XR15"): ("RGB", "BGR;15"),
    fourcc("AR15"): ("RGB", "BGR;15"),
}


def image(view: memoryview, shape: Geometry, part: Part) -> Image.Image:
    """A private copy of a part's pixels."""
    mode, raw = RAW_MODES[shape.fourcc]
    octets = FORMATS[shape.fourcc].bits // 8
    row = part.width * octets
    data = memoryview(bytearray(row * part.height))
    copy_rows(data, row, view[shape.offset + part.y * shape.stride + part.x * octets :], shape.stride, row, part.height)
    return Image.frombytes(mode, (part.width, part.height), data, "raw", raw, row, 1)
