"""The name of a monitor, from its EDID."""

from __future__ import annotations

from typing import Final

from displbe.wire.edid import descriptors, is_edid

__all__ = ["edid_name"]

_SERIAL: Final = bytes.fromhex("000000ff00")
"""The beginning of the descriptor that holds the serial number as text."""


def edid_name(edid: bytes) -> str:
    """Return `edid:MAKER-PRODUCT-SERIAL` for a monitor; empty: it sends no EDID.

    MAKER is three letters (bytes 8 and 9), PRODUCT four hexadecimal digits (bytes 10 and 11). SERIAL is the text of the
    serial number's descriptor (0xFF); without one, it is the number in bytes 12 to 15, in decimal. A monitor that has
    neither is named `edid:MAKER-PRODUCT`. VESA E-EDID, release A, 3.4 and 3.10.3.
    """
    if not is_edid(edid):
        return ""
    letters = int.from_bytes(edid[8:10], "big")
    maker = "".join(chr(64 + (letters >> shift & 31)) for shift in (10, 5, 0))
    serial = _serial_text(edid) or str(int.from_bytes(edid[12:16], "little") or "")
    name = f"edid:{maker}-{int.from_bytes(edid[10:12], 'little'):04X}"
    return f"{name}-{serial}" if serial else name


def _serial_text(edid: bytes) -> str:
    for descriptor in descriptors(edid):
        if descriptor.startswith(_SERIAL):
            text = descriptor[5:].partition(b"\n")[0].decode("ascii", "replace").strip()
            return "".join(letter if letter.isascii() and letter.isprintable() else "_" for letter in text)
    return ""
