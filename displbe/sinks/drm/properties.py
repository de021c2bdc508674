"""Properties of KMS objects: their descriptions (GETPROPERTY), and the list of formats and modifiers in IN_FORMATS."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct, error
from typing import Final

import msgspec

from . import uapi

__all__ = ["Property", "linear_formats"]

_BLOB: Final = Struct("=6I")
"""struct drm_format_modifier_blob: version, flags, count_formats, formats_offset, count_modifiers, modifiers_offset."""
_MODIFIER: Final = Struct("=QIIQ")
"""struct drm_format_modifier: a mask of formats, the index of the mask's first format, padding, the modifier."""


class Property(msgspec.Struct, frozen=True):
    """A property's name and the values that it can have."""

    name: str
    settable: bool = True
    """Whether programs may set it (not DRM_MODE_PROP_IMMUTABLE)."""
    names: dict[str, int] = {}
    """The values of an enumeration, or of a bitmask with one bit set, by name."""
    limits: tuple[int, int] | None = None
    """The lowest and the highest value of a range."""

    @classmethod
    def of(cls, name: str, flags: int, values: list[int], names: Iterable[tuple[str, int]]) -> Property:
        """Return a property with the `flags`, `values` and enumeration of GETPROPERTY."""
        is_range = flags & uapi.DRM_MODE_PROP_RANGE and len(values) == 2
        return cls(
            name,
            not flags & uapi.DRM_MODE_PROP_IMMUTABLE,
            # The enumeration of a bitmask has the numbers of the bits.
            {key: 1 << value if flags & uapi.DRM_MODE_PROP_BITMASK else value for key, value in names},
            (values[0], values[1]) if is_range else None,
        )


def linear_formats(data: bytes, formats: frozenset[int]) -> frozenset[int]:
    """Return those of a plane's `formats` that it shows in a linear layout; `data` is its IN_FORMATS blob, or empty.

    Guests' frames are linear. All formats are returned if the blob is missing or odd, or has no linear format: then it
    says nothing about frames without a modifier.
    """
    try:
        version, _, format_count, format_offset, modifier_count, modifier_offset = _BLOB.unpack_from(data)
        if version != uapi.FORMAT_BLOB_CURRENT:
            return formats
        codes = Struct(f"={format_count}I").unpack_from(data, format_offset)
        linear = set()
        for number in range(modifier_count):
            mask, first, _, modifier = _MODIFIER.unpack_from(data, modifier_offset + number * _MODIFIER.size)
            if modifier == uapi.DRM_FORMAT_MOD_LINEAR:
                linear |= {code for index, code in enumerate(codes[first : first + 64]) if mask >> index & 1}
    except error:
        return formats
    return formats & linear or formats
