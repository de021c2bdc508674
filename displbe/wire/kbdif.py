"""kbdif: what a guest's keyboard, pointer and touch screen are told (xen/include/public/io/kbdif.h).

Events have 40 octets each and lie in one page that the guest has granted: four free-running u32 indices, at 1024 a ring of 51 events
towards the guest, at 3072 one of 25 from it, for which there are no events yet. Index modulo 51 or 25. Everything is little-endian.
`protocol/input.md` has the layouts as tables, `protocol/vectors/kbdif.json` bytes made from the header, which the tests compare
with this file.

The guest can write everything in the page at any time: our indices are private, an index of the guest's that no honest guest can have
raises `FrontendBroken`.
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
IN_SLOTS: Final = 51
"""XENKBD_IN_RING_LEN: 2048 / 40."""
OUT_SLOTS: Final = 25
"""XENKBD_OUT_RING_LEN: 1024 / 40."""
RAW_MAX: Final = 0x7FFF
"""The greatest coordinate of a guest that has asked for raw ones (`request-raw-pointer`)."""

_U32: Final = 0xFFFFFFFF
# struct xenkbd_page
_IN_CONS: Final = 0
_IN_PROD: Final = 4
_OUT_CONS: Final = 8
_OUT_PROD: Final = 12
_IN_RING: Final = 1024


class EventType(enum.IntEnum):
    """XENKBD_TYPE_*."""

    MOTION = 1
    KEY = 3
    POS = 4
    MTOUCH = 5


class TouchEvent(enum.IntEnum):
    """XENKBD_MT_EV_*."""

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
    """The pointer moves: pixels; `rel_z` detents of the wheel, positive down (Linux's frontend turns the sign for REL_WHEEL)."""
    return _pack_motion(EventType.MOTION, rel_x, rel_y, rel_z)


def encode_key(keycode: int, pressed: bool) -> bytes:
    """A key or a button, by its number in Linux's input-event-codes.h. Pressed again while it is pressed: a repetition."""
    return _pack_key(EventType.KEY, pressed, keycode)


def encode_position(abs_x: int, abs_y: int, rel_z: int) -> bytes:
    """The pointer is here: pixels, or 0 to RAW_MAX; `rel_z` as for a motion."""
    return _pack_motion(EventType.POS, abs_x, abs_y, rel_z)


def encode_touch_down(contact: int, x: int, y: int) -> bytes:
    """A finger comes down: pixels."""
    return _pack_touch_at(EventType.MTOUCH, TouchEvent.DOWN, contact, x, y)


def encode_touch_motion(contact: int, x: int, y: int) -> bytes:
    """A finger moves: pixels."""
    return _pack_touch_at(EventType.MTOUCH, TouchEvent.MOTION, contact, x, y)


def encode_touch_up(contact: int) -> bytes:
    """A finger goes up; its number may be used again."""
    return _TOUCH.pack(EventType.MTOUCH, TouchEvent.UP, contact)


def encode_touch_syn(contact: int) -> bytes:
    """The touch events since the last of these belong together."""
    return _TOUCH.pack(EventType.MTOUCH, TouchEvent.SYN, contact)


def encode_touch_shape(contact: int, major: int, minor: int) -> bytes:
    """The finger's ellipse: its diameters in pixels."""
    return _TOUCH_SHAPE.pack(EventType.MTOUCH, TouchEvent.SHAPE, contact, major, minor)


def encode_touch_orientation(contact: int, degrees: int) -> bytes:
    """The angle of the ellipse's longer axis, clockwise from the Y axis, -180 to 180."""
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
    """The event in 40 octets (the frontend's half). Raises ValueError for one that kbdif does not have."""
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
    """The 40 octets of an event."""
    return _ENCODERS[type(event)](*msgspec.structs.astuple(event))


class BackKbdPage:
    """The backend's half: gives events. `put` as many as there is `room` for, then `push` once.

    A frontend keeps its page when its backend goes and comes again; so the ring goes on where the page says, which raises
    FrontendBroken when it says something impossible.
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
        """Whether events were given over this page before: keys may be down of which we know nothing."""
        self.room()

    def room(self) -> int:
        """How many events fit now. Raises FrontendBroken when the frontend's index lies outside the ring."""
        unread = (self._prod - self._load(_IN_CONS)) & _U32
        if unread > IN_SLOTS:
            raise FrontendBroken(f"impossible event index: {unread} unread events in a ring of {IN_SLOTS}")
        # 2**32 is one more than a multiple of 51: the events 0xffffffff and 0 lie at the same place. So 0 waits until all before is taken.
        to_end = -self._prod & _U32
        if to_end == 0:
            return IN_SLOTS if unread == 0 else 0
        return min(IN_SLOTS - unread, to_end)

    def put(self, event: bytes) -> None:
        """Write an event, not yet for the frontend to see."""
        prod = self._prod
        self._write(_IN_RING + (prod % IN_SLOTS) * EVENT_SIZE, event)
        self._prod = (prod + 1) & _U32

    def push(self) -> bool:
        """Let the frontend see what was put. True when it needs a notification.

        It needs none while it has one that it has not answered: it reads on to where `in_prod` is then, or, when it looked just
        before that moved, sets `in_cons` and notifies us, as Linux does after every look. Then this is to be asked again.
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
        """Whether there are events that the frontend has not taken."""
        return self._load(_IN_CONS) != self._prod

    def taken(self) -> int:
        """How far the frontend has got: its index."""
        return self._load(_IN_CONS)

    def drain(self) -> int:
        """Take what the frontend has sent, as many events as are given back: kbdif has none that would mean something.

        Raises FrontendBroken when its index lies outside the ring.
        """
        sent = (self._load(_OUT_PROD) - self._out_cons) & _U32
        if sent > OUT_SLOTS:
            raise FrontendBroken(f"impossible event index: {sent} events sent in a ring of {OUT_SLOTS}")
        if sent:
            self._out_cons = (self._out_cons + sent) & _U32
            self._store(_OUT_CONS, self._out_cons)
        return sent


class FrontKbdPage:
    """The frontend's half: takes events (input_handler of drivers/input/misc/xen-kbdfront.c)."""

    def __init__(self, page: SharedPage) -> None:
        self._page = page
        page.write(0, bytes(PAGE_SIZE))

    def take(self) -> list[bytes]:
        """All events up to where the ring ends now; then the backend is to be notified, when there were any."""
        load = self._page.load
        prod, cons = load(_IN_PROD), load(_IN_CONS)
        found = []
        while cons != prod:
            found.append(self._page.copy(_IN_RING + (cons % IN_SLOTS) * EVENT_SIZE, EVENT_SIZE))
            cons = (cons + 1) & _U32
        self._page.fence()
        self._page.store(_IN_CONS, cons)
        return found
