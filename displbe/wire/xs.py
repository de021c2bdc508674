"""XenStore's messages (xen/include/public/io/xs_wire.h), on pyxs's words for them.

A message is a header of four u32 (type, request id, transaction id, length of the payload) and the payload. pyxs's
`Packet` checks what it is given against limits that real daemons do not keep (oxenstored answers a long DIRECTORY in
more than 4096 octets), so incoming ones are made past that check.
"""

from __future__ import annotations

from typing import Final

from pyxs._internal import NUL as _NUL
from pyxs._internal import Op, Packet

__all__ = [
    "DIRECTORY_PART",
    "MAX_PAYLOAD",
    "MAX_REPLY",
    "NUL",
    "RESET_WATCHES",
    "Decoder",
    "Op",
    "Packet",
    "ProtocolError",
    "encode",
    "parse_number",
    "parse_perms",
    "split",
]

NUL: Final[bytes] = _NUL
DIRECTORY_PART: Final = 22
"""XS_DIRECTORY_PART, which pyxs does not know: a directory in pieces."""
RESET_WATCHES: Final = 21
"""XS_RESET_WATCHES, unknown to pyxs too: forget all watches of this connection."""
MAX_PAYLOAD: Final = 4096
"""XENSTORE_PAYLOAD_MAX, of what we send."""
MAX_REPLY: Final = 1 << 20
"""The longest reply that is believed; a longer one means that the stream has lost its place."""

_HEADER: Final = Packet._struct


class ProtocolError(Exception):
    """The other end does not speak XenStore."""


def encode(op: int, request_id: int, transaction: int, payload: bytes) -> bytes:
    """The octets of a message. Raises ValueError for a payload over 4096 octets."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"XenStore message of {len(payload)} octets")
    return bytes(_HEADER.pack(op, request_id, transaction, len(payload))) + payload


class Decoder:
    """Octets in, packets out, in whatever pieces they come."""

    def __init__(self, limit: int = MAX_REPLY) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[Packet]:
        """The messages that are complete now. Raises ProtocolError for a length beyond the limit."""
        self._buffer += data
        packets = []
        while len(self._buffer) >= _HEADER.size:
            op, request_id, transaction, size = _HEADER.unpack_from(self._buffer)
            if size > self._limit:
                raise ProtocolError(f"message of {size} octets")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                break
            packets.append(Packet._make((op, request_id, transaction, size, bytes(self._buffer[_HEADER.size : end]))))
            del self._buffer[:end]
        return packets


def split(payload: bytes) -> list[bytes]:
    """The parts of a payload, each of which ends in NUL."""
    return payload.split(NUL)[:-1]


def parse_perms(payload: bytes) -> list[tuple[str, int]]:
    """GET_PERMS' answer: (n, r, w or b; domid) for each entry; the first names the owner, and the rights of all others.

    Raises ProtocolError for anything else.
    """
    entries = []
    for entry in split(payload):
        domid = parse_number(entry[1:], 0xFFFF)
        if entry[:1] not in (b"n", b"r", b"w", b"b") or domid is None:
            raise ProtocolError(f"permission {entry!r}")
        entries.append((entry[:1].decode("ascii"), domid))
    if not entries:
        raise ProtocolError("no permissions")
    return entries


def parse_number(value: bytes, maximum: int = 0xFFFFFFFF) -> int | None:
    """A decimal number as another domain wrote it, or None: digits only, at most ten, not above `maximum`."""
    if not 1 <= len(value) <= 10 or not value.isdigit():
        return None
    number = int(value)
    return number if number <= maximum else None
