"""The layouts of pixel formats (drm_fourcc.h), written for the tests independently of the product."""

from __future__ import annotations

from typing import Final

__all__ = ["DEPTHS"]

DEPTHS: Final = {
    "XR24": (8, 8, 8),
    "AR24": (8, 8, 8),
    "RG24": (8, 8, 8),
    "RG16": (5, 6, 5),
    "XR15": (5, 5, 5),
    "AR15": (5, 5, 5),
    "XR12": (4, 4, 4),
    "AR12": (4, 4, 4),
}
"""Bits of red, green and blue: each packed in this order below what is left over on top, little-endian."""
