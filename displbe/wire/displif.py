"""The messages of displif: requests, responses and events of 64 bytes each (xen/include/public/io/displif.h).

The header's C structs are the authority. Where the header's diagrams differ from them (GET_EDID, SET_CONFIG), the structs are right.
Everything is little-endian. `protocol/messages.md` has the layouts as tables. `protocol/vectors/displif.json` holds bytes made from the
header itself; the tests compare them with this file.

Decoders take `bytes`, a private copy of a slot: a guest can rewrite shared memory between two reads.
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import ClassVar, Final, TypeAlias

import msgspec

__all__ = [
    "MESSAGE_SIZE",
    "DbufCreate",
    "DbufDestroy",
    "FbAttach",
    "FbDetach",
    "GetEdid",
    "Operation",
    "PageFlip",
    "PageFlipEvent",
    "Request",
    "Response",
    "SetConfig",
    "UnknownRequest",
    "decode_event",
    "decode_request",
    "decode_response",
    "encode_event",
    "encode_request",
    "encode_response",
]

MESSAGE_SIZE: Final = 64
"""Bytes of each request, response and event."""

REQ_ALLOC: Final = 1 << 0
"""XENDISPL_DBUF_FLG_REQ_ALLOC: the backend allocates the buffer."""

EVENT_PAGE_FLIP: Final = 0x00
"""XENDISPL_EVT_PG_FLIP, the only event of displif."""


class Operation(enum.IntEnum):
    """The operations: XENDISPL_OP_*."""

    DBUF_CREATE = 0x10
    DBUF_DESTROY = 0x11
    FB_ATTACH = 0x12
    FB_DETACH = 0x13
    SET_CONFIG = 0x14
    PG_FLIP = 0x15
    GET_EDID = 0x16


class DbufCreate(msgspec.Struct, frozen=True, gc=False):
    """Create a display buffer from the guest's pages. Units: pixels, bits (`bpp`), bytes (`buffer_sz`, `data_ofs`)."""

    operation: ClassVar[int] = Operation.DBUF_CREATE
    layout: ClassVar[Struct] = Struct("<HB5xQIIIIIII20x")
    id: int
    dbuf_cookie: int
    width: int
    height: int
    bpp: int
    buffer_sz: int
    flags: int
    gref_directory: int
    data_ofs: int


class DbufDestroy(msgspec.Struct, frozen=True, gc=False):
    """Release a display buffer. Nothing maps its pages any more when the response is sent."""

    operation: ClassVar[int] = Operation.DBUF_DESTROY
    layout: ClassVar[Struct] = Struct("<HB5xQ48x")
    id: int
    dbuf_cookie: int


class FbAttach(msgspec.Struct, frozen=True, gc=False):
    """Make a framebuffer of a display buffer. `pixel_format` is a DRM fourcc."""

    operation: ClassVar[int] = Operation.FB_ATTACH
    layout: ClassVar[Struct] = Struct("<HB5xQQIII28x")
    id: int
    dbuf_cookie: int
    fb_cookie: int
    width: int
    height: int
    pixel_format: int


class FbDetach(msgspec.Struct, frozen=True, gc=False):
    """Destroy a framebuffer."""

    operation: ClassVar[int] = Operation.FB_DETACH
    layout: ClassVar[Struct] = Struct("<HB5xQ48x")
    id: int
    fb_cookie: int


class SetConfig(msgspec.Struct, frozen=True, gc=False):
    """Show a part of a framebuffer on this connector, in pixels; or nothing (`fb_cookie` 0)."""

    operation: ClassVar[int] = Operation.SET_CONFIG
    layout: ClassVar[Struct] = Struct("<HB5xQIIIII28x")
    id: int
    fb_cookie: int
    x: int
    y: int
    width: int
    height: int
    bpp: int


class PageFlip(msgspec.Struct, frozen=True, gc=False):
    """Show another framebuffer at the next refresh. An event follows when it is on the screen."""

    operation: ClassVar[int] = Operation.PG_FLIP
    layout: ClassVar[Struct] = Struct("<HB5xQ48x")
    id: int
    fb_cookie: int


class GetEdid(msgspec.Struct, frozen=True, gc=False):
    """Write the connector's EDID into the guest's pages, which hold `buffer_sz` bytes."""

    operation: ClassVar[int] = Operation.GET_EDID
    layout: ClassVar[Struct] = Struct("<HB5xII48x")
    id: int
    buffer_sz: int
    gref_directory: int


class UnknownRequest(msgspec.Struct, frozen=True, gc=False):
    """A request with an operation that displif does not define."""

    id: int
    operation: int


Known: TypeAlias = DbufCreate | DbufDestroy | FbAttach | FbDetach | SetConfig | PageFlip | GetEdid
Request: TypeAlias = Known | UnknownRequest

_KNOWN: Final[dict[int, type[Known]]] = {
    kind.operation: kind for kind in (DbufCreate, DbufDestroy, FbAttach, FbDetach, SetConfig, PageFlip, GetEdid)
}
_UNPACK: Final = {
    # Unpacks the fields without the operation, which has selected the layout.
    operation: (kind, Struct(kind.layout.format.replace("B5x", "6x")).unpack)
    for operation, kind in _KNOWN.items()
}
_HEADER: Final = Struct("<HB61x")
_RESPONSE: Final = Struct("<HBxiI52x")
_EVENT: Final = Struct("<HB5xQ48x")
_pack_response = _RESPONSE.pack
_pack_event = _EVENT.pack


def decode_request(slot: bytes) -> Request:
    """Decode a request of 64 bytes. Reserved bytes are ignored: Linux leaves bytes of earlier requests in them."""
    entry = _UNPACK.get(slot[2])
    if entry is None:
        return UnknownRequest(*_HEADER.unpack(slot))
    kind, unpack = entry
    return kind(*unpack(slot))


def encode_request(request: Request) -> bytes:
    """Encode a request in 64 bytes (the frontend's half, for simulated guests and tests)."""
    if isinstance(request, UnknownRequest):
        return _HEADER.pack(request.id, request.operation)
    number, *fields = msgspec.structs.astuple(request)
    return request.layout.pack(number, request.operation, *fields)


class Response(msgspec.Struct, frozen=True, gc=False):
    """The response to a request. `status` is 0 or a negative error number; `edid_sz` is the EDID's size in bytes, for GET_EDID."""

    id: int
    operation: int
    status: int
    edid_sz: int = 0


def encode_response(number: int, operation: int, status: int, edid_sz: int = 0) -> bytes:
    """Encode a response in 64 bytes. Unused bytes are zero.

    All 64 bytes are written into the slot, because Linux does not clear a slot before it reuses it. Without the zeros, the pixel format
    of an old request (FB_ATTACH) would remain where the next request (DBUF_CREATE) has its flags.
    """
    return _pack_response(number, operation, status, edid_sz)


def decode_response(slot: bytes) -> Response:
    """Decode a response of 64 bytes (the frontend's half)."""
    return Response(*_RESPONSE.unpack(slot))


class PageFlipEvent(msgspec.Struct, frozen=True, gc=False):
    """The framebuffer `fb_cookie` that the guest flipped to is on the screen."""

    id: int
    fb_cookie: int


def encode_event(number: int, fb_cookie: int) -> bytes:
    """Encode a page-flip event in 64 bytes. `number` is taken modulo 2**16."""
    return _pack_event(number & 0xFFFF, EVENT_PAGE_FLIP, fb_cookie)


def decode_event(slot: bytes) -> PageFlipEvent:
    """Decode an event of 64 bytes (the frontend's half). Raises ValueError for an unknown type."""
    number, kind, cookie = _EVENT.unpack(slot)
    if kind != EVENT_PAGE_FLIP:
        raise ValueError(f"event of unknown type {kind}")
    return PageFlipEvent(number, cookie)
