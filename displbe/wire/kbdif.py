"""The events of kbdif for a guest's keyboard, pointer and touch screen, and the page they are in (xen/include/public/io/kbdif.h).

An event has 40 bytes. The page is granted by the guest: four free-running u32 indices at 0, a ring of 51 events to the guest at 1024, and
a ring of 25 events from the guest at 3072, for which kbdif defines no events yet. The slot is the index modulo 51 or 25. Everything is
little-endian. `protocol/input.md` has the layouts as tables. `protocol/vectors/kbdif.json` holds bytes made from the header; the tests
compare them with this file.

The guest can write everything in the page at any time. Therefore the backend's indices are private, and an index of the guest that is
impossible under the protocol raises `FrontendBroken`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from struct import Struct
from typing import Final, TypeAlias

import msgspec

from .errors import FrontendBroken
from .ring import PAGE_SIZE, SharedPage

__all__ = [
    "EVENT_SIZE",
    "IN_SLOTS",
    "OUT_SLOTS",
    "RAW_MAX",
    "BackKbdPage",
    "EventType",
    "FrontKbdPage",
    "InEvent",
    "Key",
    "Motion",
    "Position",
    "TouchDown",
    "TouchEvent",
    "TouchMotion",
    "TouchOrientation",
    "TouchShape",
    "TouchSyn",
    "TouchUp",
    "decode_event",
    "encode_event",
    "encode_key",
    "encode_motion",
    "encode_position",
    "encode_touch_down",
    "encode_touch_motion",
    "encode_touch_orientation",
    "encode_touch_shape",
    "encode_touch_syn",
    "encode_touch_up",
]

EVENT_SIZE: Final = 40
"""Bytes of an event."""
IN_SLOTS: Final = 51
"""XENKBD_IN_RING_LEN: 2048 / 40."""
OUT_SLOTS: Final = 25
"""XENKBD_OUT_RING_LEN: 1024 / 40."""
RAW_MAX: Final = 0x7FFF
"""The largest coordinate for a guest that has asked for raw coordinates (`request-raw-pointer`)."""

_U32: Final = 0xFFFFFFFF
# struct xenkbd_page
_IN_CONS: Final = 0
_IN_PROD: Final = 4
_OUT_CONS: Final = 8
_OUT_PROD: Final = 12
_IN_RING: Final = 1024


class EventType(enum.IntEnum):
    """The types of events: XENKBD_TYPE_*."""

    MOTION = 1
    KEY = 3
    POS = 4
    MTOUCH = 5


class TouchEvent(enum.IntEnum):
    """The types of multi-touch events: XENKBD_MT_EV_*."""

    DOWN = 0
    UP = 1
    MOTION = 2
    SYN = 3
    SHAPE = 4
    ORIENT = 5


_MOTION: Final = Struct("<B3xiii24x")
_KEY: Final = Struct("<BB2xI32x")
_TOUCH: Final = Struct("<BBB37x")
_TOUCH_AT: Final = Struct("<BBB5xii24x")
_TOUCH_SHAPE: Final = Struct("<BBB5xII24x")
_TOUCH_ORIENT: Final = Struct("<BBB5xh30x")
_pack_motion = _MOTION.pack
_pack_key = _KEY.pack
_pack_touch_at = _TOUCH_AT.pack


def encode_motion(rel_x: int, rel_y: int, rel_z: int) -> bytes:
    """Encode a pointer motion in pixels. `rel_z` is in detents of the wheel, down is positive (Linux negates it for REL_WHEEL)."""
    return _pack_motion(EventType.MOTION, rel_x, rel_y, rel_z)


def encode_key(keycode: int, pressed: bool) -> bytes:
    """Encode a key or button by its code in Linux's input-event-codes.h. A press of a key that is down already is a repetition."""
    return _pack_key(EventType.KEY, pressed, keycode)


def encode_position(abs_x: int, abs_y: int, rel_z: int) -> bytes:
    """Encode the pointer's position in pixels, or from 0 to RAW_MAX. `rel_z` is as in `encode_motion`."""
    return _pack_motion(EventType.POS, abs_x, abs_y, rel_z)


def encode_touch_down(contact: int, x: int, y: int) -> bytes:
    """Encode the touch of a finger, at a position in pixels."""
    return _pack_touch_at(EventType.MTOUCH, TouchEvent.DOWN, contact, x, y)


def encode_touch_motion(contact: int, x: int, y: int) -> bytes:
    """Encode a finger's motion to a position in pixels."""
    return _pack_touch_at(EventType.MTOUCH, TouchEvent.MOTION, contact, x, y)


def encode_touch_up(contact: int) -> bytes:
    """Encode the lifting of a finger. Its contact number may be used again afterwards."""
    return _TOUCH.pack(EventType.MTOUCH, TouchEvent.UP, contact)


def encode_touch_syn(contact: int) -> bytes:
    """Encode the end of a group: the touch events since the last SYN belong together."""
    return _TOUCH.pack(EventType.MTOUCH, TouchEvent.SYN, contact)


def encode_touch_shape(contact: int, major: int, minor: int) -> bytes:
    """Encode the diameters of a finger's ellipse in pixels."""
    return _TOUCH_SHAPE.pack(EventType.MTOUCH, TouchEvent.SHAPE, contact, major, minor)


def encode_touch_orientation(contact: int, degrees: int) -> bytes:
    """Encode the angle of the ellipse's longer axis in degrees, clockwise from the Y axis, -180 to 180."""
    return _TOUCH_ORIENT.pack(EventType.MTOUCH, TouchEvent.ORIENT, contact, degrees)


class Motion(msgspec.Struct, frozen=True):
    """XENKBD_TYPE_MOTION"""

    rel_x: int
    rel_y: int
    rel_z: int


class Key(msgspec.Struct, frozen=True):
    """XENKBD_TYPE_KEY"""

    pressed: int
    keycode: int


class Position(msgspec.Struct, frozen=True):
    """XENKBD_TYPE_POS"""

    abs_x: int
    abs_y: int
    rel_z: int


class TouchDown(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_DOWN"""

    contact_id: int
    abs_x: int
    abs_y: int


class TouchUp(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_UP"""

    contact_id: int


class TouchMotion(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_MOTION"""

    contact_id: int
    abs_x: int
    abs_y: int


class TouchSyn(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_SYN"""

    contact_id: int


class TouchShape(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_SHAPE"""

    contact_id: int
    major: int
    minor: int


class TouchOrientation(msgspec.Struct, frozen=True):
    """XENKBD_MT_EV_ORIENT"""

    contact_id: int
    orientation: int


InEvent: TypeAlias = (
    Motion | Key | Position | TouchDown | TouchUp | TouchMotion | TouchSyn | TouchShape | TouchOrientation
)

_POINTER_AND_KEYS: Final[dict[int, tuple[type[InEvent], Struct]]] = {
    EventType.MOTION: (Motion, _MOTION),
    EventType.KEY: (Key, _KEY),
    EventType.POS: (Position, _MOTION),
}
_TOUCHES: Final[dict[int, tuple[type[InEvent], Struct]]] = {
    TouchEvent.DOWN: (TouchDown, _TOUCH_AT),
    TouchEvent.UP: (TouchUp, _TOUCH),
    TouchEvent.MOTION: (TouchMotion, _TOUCH_AT),
    TouchEvent.SYN: (TouchSyn, _TOUCH),
    TouchEvent.SHAPE: (TouchShape, _TOUCH_SHAPE),
    TouchEvent.ORIENT: (TouchOrientation, _TOUCH_ORIENT),
}


def decode_event(slot: bytes) -> InEvent:
    """Decode an event of 40 bytes (the frontend's half). Raises ValueError for an unknown type."""
    if slot[0] == EventType.MTOUCH and slot[1] in _TOUCHES:
        kind, layout = _TOUCHES[slot[1]]
        return kind(*layout.unpack(slot)[2:])
    if slot[0] in _POINTER_AND_KEYS:
        kind, layout = _POINTER_AND_KEYS[slot[0]]
        return kind(*layout.unpack(slot)[1:])
    raise ValueError(f"event of unknown type {slot[0]}, {slot[1]}")


_ENCODERS: Final[dict[type[InEvent], Callable[..., bytes]]] = {
    Motion: encode_motion,
    Key: lambda pressed, keycode: encode_key(keycode, pressed),
    Position: encode_position,
    TouchDown: encode_touch_down,
    TouchUp: encode_touch_up,
    TouchMotion: encode_touch_motion,
    TouchSyn: encode_touch_syn,
    TouchShape: encode_touch_shape,
    TouchOrientation: encode_touch_orientation,
}


def encode_event(event: InEvent) -> bytes:
    """Encode an event in 40 bytes."""
    return _ENCODERS[type(event)](*msgspec.structs.astuple(event))


class BackKbdPage:
    """The backend's half of the page: writes events. `put` as many as there is `room` for, then call `push` once.

    A frontend keeps its page when its backend is restarted. Therefore the ring goes on at the page's indices. Raises FrontendBroken when
    these are impossible.
    """

    def __init__(self, page: SharedPage) -> None:
        self._load = page.load
        self._store = page.store
        self._fence = page.fence
        self._write = page.write
        self._prod = page.load(_IN_PROD)
        self._notified = page.load(_IN_CONS)
        self._out_cons = page.load(_OUT_CONS)
        self.used = self._prod != 0
        """Whether an earlier backend has used this page: unknown keys may be down in the guest."""
        self.room()

    def room(self) -> int:
        """Return how many events fit now. Raises FrontendBroken when the frontend's index is impossible."""
        unread = (self._prod - self._load(_IN_CONS)) & _U32
        if unread > IN_SLOTS:
            raise FrontendBroken(f"impossible event index: {unread} unread events in a ring of {IN_SLOTS}")
        # 2**32 is one more than a multiple of 51: events 0xffffffff and 0 have the same slot. Event 0 waits until all others are taken.
        to_end = -self._prod & _U32
        if to_end == 0:
            return IN_SLOTS if unread == 0 else 0
        return min(IN_SLOTS - unread, to_end)

    def put(self, event: bytes) -> None:
        """Write an event. The frontend sees it after `push`."""
        prod = self._prod
        self._write(_IN_RING + (prod % IN_SLOTS) * EVENT_SIZE, event)
        self._prod = (prod + 1) & _U32

    def push(self) -> bool:
        """Let the frontend see the events put so far. Return whether it needs a notification.

        A frontend that has not answered the last notification needs no other one: it will read up to the current `in_prod`. A frontend
        that read `in_prod` just before it was advanced sets `in_cons` and notifies the backend, as Linux does after every read; the
        caller then calls `push` again.
        """
        prod = self._prod
        self._store(_IN_PROD, prod)
        self._fence()
        cons = self._load(_IN_CONS)
        if cons == prod or 0 < (self._notified - cons) & _U32 <= IN_SLOTS:
            return False
        self._notified = prod
        return True

    def is_waiting(self) -> bool:
        """Return whether the frontend has not taken all events yet."""
        return self._load(_IN_CONS) != self._prod

    def taken(self) -> int:
        """Return the frontend's consumer index."""
        return self._load(_IN_CONS)

    def drain(self) -> int:
        """Discard the events that the frontend has sent, and return their number. kbdif defines no events from the frontend.

        Raises FrontendBroken when its index is impossible.
        """
        sent = (self._load(_OUT_PROD) - self._out_cons) & _U32
        if sent > OUT_SLOTS:
            raise FrontendBroken(f"impossible event index: {sent} events sent in a ring of {OUT_SLOTS}")
        if sent:
            self._out_cons = (self._out_cons + sent) & _U32
            self._store(_OUT_CONS, self._out_cons)
        return sent


class FrontKbdPage:
    """The frontend's half of the page: takes events, as input_handler in Linux's drivers/input/misc/xen-kbdfront.c does."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        page.write(0, bytes(PAGE_SIZE))

    def take(self) -> list[bytes]:
        """Take all events up to the current producer index. If there were any, the caller notifies the backend."""
        load = self._page.load
        prod, cons = load(_IN_PROD), load(_IN_CONS)
        found = []
        while cons != prod:
            found.append(self._page.copy(_IN_RING + (cons % IN_SLOTS) * EVENT_SIZE, EVENT_SIZE))
            cons = (cons + 1) & _U32
        self._page.fence()
        self._page.store(_IN_CONS, cons)
        return found
