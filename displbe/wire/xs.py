"""XenStore messages (xen/include/public/io/xs_wire.h): the operations, encoding, and decoding of a byte stream.

A message is a header of four u32 in the machine's byte order (`struct xsd_sockmsg`: type, request id, transaction id, length of the
payload), followed by the payload. A reply repeats the type, the request id and the transaction id of its request, or has the type
ERROR and the name of an errno as its payload.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple

__all__ = [
    "HEADER",
    "MAX_PAYLOAD",
    "MAX_REPLY",
    "NUL",
    "Decoder",
    "Op",
    "Packet",
    "ProtocolError",
    "encode",
    "parse_number",
    "parse_perms",
    "split",
]

NUL: Final = b"\0"
HEADER: Final = Struct("=IIII")
"""`struct xsd_sockmsg`: 16 bytes."""
MAX_PAYLOAD: Final = 4096
"""XENSTORE_PAYLOAD_MAX in bytes: the limit of what a client sends."""
MAX_REPLY: Final = 1 << 20
"""The longest reply that is accepted, in bytes. A longer one means that the stream is out of step.

It is above MAX_PAYLOAD because oxenstored answers a long DIRECTORY with more than that, in one message.
"""


class Op(enum.IntEnum):
    """The type of a message: `enum xsd_sockmsg_type`."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    """20 was RESTRICT, which Xen has removed."""
    DIRECTORY_PART = 22


class Packet(NamedTuple):
    """One message. `op` is a plain int: a peer may send a type that is not in `Op`."""

    op: int
    request_id: int
    transaction_id: int
    payload: bytes


class ProtocolError(Exception):
    """The peer sent bytes that are no XenStore message."""


def encode(op: int, request_id: int, transaction_id: int, payload: bytes) -> bytes:
    """Return a message as bytes. Raises ValueError for a payload over MAX_PAYLOAD bytes."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"XenStore message of {len(payload)} bytes")
    return HEADER.pack(op, request_id, transaction_id, len(payload)) + payload


class Decoder:
    """Turns a stream of bytes, in pieces of any size, into packets."""

    def __init__(self, limit: int = MAX_REPLY) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[Packet]:
        """Return the messages that are complete now. Raises ProtocolError for a header that announces a payload longer than the limit."""
        self._buffer += data
        packets = []
        while len(self._buffer) >= HEADER.size:
            op, request_id, transaction_id, size = HEADER.unpack_from(self._buffer)
            if size > self._limit:
                raise ProtocolError(f"message of {size} bytes")
            end = HEADER.size + size
            if len(self._buffer) < end:
                break
            packets.append(Packet(op, request_id, transaction_id, bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return packets


def split(payload: bytes) -> list[bytes]:
    """Return the parts of a payload, each of which ends in NUL; bytes after the last NUL are left out."""
    return payload.split(NUL)[:-1]


def parse_perms(payload: bytes) -> list[tuple[str, int]]:
    """Return the entries of a GET_PERMS reply: (n, r, w or b; domid).

    The domid of the first entry owns the node; the first entry's letter applies to every domain that is not listed.
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
    """Return a decimal number that another domain wrote, or None: 1 to 10 digits and nothing else, at most `maximum`.

    A number has one form only: `07` is none. Otherwise a device, a page or an output would have two names.
    """
    if not 1 <= len(value) <= 10 or not value.isdigit() or (len(value) > 1 and value.startswith(b"0")):
        return None
    number = int(value)
    return number if number <= maximum else None
