"""Whatever an X server sends a window, what its guest hears makes sense; and where pictures lie in windows. No server needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xcffib import MemoryUnpacker
from xcffib import xproto as x

from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
)
from displbe.sinks.x11.seat import WindowSeat
from displbe.sinks.x11.window import place

PLACE = (10, 20, 64, 48)
octets = st.integers(0, 255)
places = st.integers(-300, 300)


DEVICE_EVENTS = {
    2: x.KeyPressEvent,
    3: x.KeyReleaseEvent,
    4: x.ButtonPressEvent,
    5: x.ButtonReleaseEvent,
    6: x.MotionNotifyEvent,
    7: x.EnterNotifyEvent,
    8: x.LeaveNotifyEvent,
}
FOCUS_EVENTS = {9: x.FocusInEvent, 10: x.FocusOutEvent}
KEYMAP_NOTIFY = 11


def device_event(number: int, detail: int, at: tuple[int, int]) -> object:
    """A key, button, motion or crossing event as it comes over the wire."""
    body = bytearray(32)
    body[0], body[1] = number, detail
    body[24:28] = b"".join(value.to_bytes(2, "little", signed=True) for value in at)
    return DEVICE_EVENTS[number](MemoryUnpacker(bytes(body)))


def focus_event(number: int, detail: int) -> object:
    """The keyboard comes, or goes."""
    return FOCUS_EVENTS[number](MemoryUnpacker(bytes([number, detail, *bytes(30)])))


def key_map(keys: bytes) -> object:
    """Which keys are down."""
    return x.KeymapNotifyEvent(MemoryUnpacker(bytes([KEYMAP_NOTIFY, *keys])))


maps = st.binary(min_size=31, max_size=31)
device_events = st.builds(
    device_event, st.sampled_from(list(DEVICE_EVENTS)), octets | st.integers(1, 12), st.tuples(places, places)
)
focus_events = st.builds(focus_event, st.sampled_from(list(FOCUS_EVENTS)), st.integers(0, 7))
key_maps = st.builds(key_map, maps)


class Sense:
    """A guest that takes nothing that makes none."""

    def __init__(self) -> None:
        self.keys: set[int] | None = None
        self.buttons: set[int] | None = None
        self.framed = True

    def hear(self, event: SeatEvent) -> None:
        match event:
            case KeyboardEnter():
                assert self.keys is None
                self.keys = set(event.keys)
                assert all(1 <= key <= 247 for key in event.keys)
            case KeyboardLeave():
                assert self.keys is not None
                self.keys = None
            case KeyboardKey():
                assert self.keys is not None
                assert (event.code in self.keys) != event.down
                self.keys ^= {event.code}
            case PointerEnter() | PointerMotion():
                assert (self.buttons is None) == isinstance(event, PointerEnter)
                self.buttons = self.buttons or set()
                assert (event.width, event.height) == PLACE[2:]
                assert 0 <= event.x <= event.width
                assert 0 <= event.y <= event.height
            case PointerLeave():
                assert self.buttons is not None
                self.buttons = None
            case PointerButton():
                assert self.buttons is not None
                assert (event.code in self.buttons) != event.down
                self.buttons ^= {event.code}
            case PointerAxis():
                assert self.buttons is not None
                assert {abs(event.vertical), abs(event.horizontal)} == {0, 120}
        if not isinstance(event, KeyboardEnter | KeyboardLeave | KeyboardKey):
            assert self.framed == (not isinstance(event, PointerFrame))
            self.framed = isinstance(event, PointerFrame)


@given(st.lists(device_events | focus_events | key_maps, max_size=60))
def test_whatever_is_sent(events: list[object]) -> None:
    """Enter before all else, leave after it, no key twice down or up, each thing of the pointer's in a frame; nothing stays at the end."""
    sense = Sense()
    seat = WindowSeat(sense.hear, lambda: PLACE)
    for event in events:
        seat.hear(event)
        assert sense.framed
    seat.leave()
    assert (sense.keys, sense.buttons) == (None, None)


@given(maps)
def test_keys_that_are_down_already(keys: bytes) -> None:
    """The bits of KeymapNotify are those keys."""
    sense = Sense()
    seat = WindowSeat(sense.hear, lambda: PLACE)
    seat.hear(focus_event(9, 3))
    seat.hear(key_map(keys))
    down = {index for index in range(1, 248) if keys[index // 8] >> index % 8 & 1}
    assert sense.keys == down


sizes = st.tuples(st.integers(1, 16384), st.integers(1, 16384))


@given(sizes, sizes)
def test_fit(size: tuple[int, int], window: tuple[int, int]) -> None:
    """As large as it goes, in the middle, of the same shape."""
    left, top, width, height = place("fit", size, window)
    assert (width, height) in ((window[0], height), (width, window[1]))
    assert 1 <= width <= window[0]
    assert 1 <= height <= window[1]
    assert abs(window[0] - width - 2 * left) <= 1
    assert abs(window[1] - height - 2 * top) <= 1
    if width > 1 and height > 1:
        assert abs(width * size[1] - height * size[0]) <= max(size)


@given(sizes, sizes)
def test_stretch_and_none(size: tuple[int, int], window: tuple[int, int]) -> None:
    """All of the window; or as it is, in the middle."""
    assert place("stretch", size, window) == (0, 0, *window)
    left, top, *shape = place("none", size, window)
    assert tuple(shape) == size
    assert abs(window[0] - size[0] - 2 * left) <= 1
    assert abs(window[1] - size[1] - 2 * top) <= 1
