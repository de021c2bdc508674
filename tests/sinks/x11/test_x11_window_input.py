"""The input of a window, which is consistent whatever the X server sends, and the area of the picture in it. No server is needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from xcffib import MemoryUnpacker
from xcffib import xproto as x

from displbe.sinks.seat import (
    KeyboardEnter,
    KeyboardKey,
    KeyboardLeave,
    KeyboardLocks,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
)
from displbe.sinks.x11.window import picture_area
from displbe.sinks.x11.window_input import KeyboardState, PointerState, WindowInput

AREA = (10, 20, 64, 48)
byte_values = st.integers(0, 255)
positions = st.integers(-300, 300)


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
    """Return a key, button, motion or crossing event, as the server sends it."""
    body = bytearray(32)
    body[0], body[1] = number, detail
    body[24:28] = b"".join(value.to_bytes(2, "little", signed=True) for value in at)
    return DEVICE_EVENTS[number](MemoryUnpacker(bytes(body)))


def focus_event(number: int, detail: int) -> object:
    """Return a FocusIn or FocusOut event."""
    return FOCUS_EVENTS[number](MemoryUnpacker(bytes([number, detail, *bytes(30)])))


def key_map(keys: bytes) -> object:
    """KeymapNotify."""
    return x.KeymapNotifyEvent(MemoryUnpacker(bytes([KEYMAP_NOTIFY, *keys])))


maps = st.binary(min_size=31, max_size=31)
device_events = st.builds(
    device_event,
    st.sampled_from(list(DEVICE_EVENTS)),
    byte_values | st.integers(1, 12),
    st.tuples(positions, positions),
)
focus_events = st.builds(focus_event, st.sampled_from(list(FOCUS_EVENTS)), st.integers(0, 7))
key_maps = st.builds(key_map, maps)


class Guest:
    """A guest that asserts that its input is consistent."""

    def __init__(self) -> None:
        self.keys: set[int] | None = None
        self.buttons: set[int] | None = None
        self.framed = True
        self.knows_locks = self.had_lock_key = False

    def hear(self, event: SeatEvent) -> None:
        match event:
            case KeyboardEnter():
                assert self.keys is None
                self.keys = set(event.keys)
                self.knows_locks, self.had_lock_key = False, bool(self.keys & {58, 69})
                assert all(1 <= key <= 247 for key in event.keys)
            case KeyboardLeave():
                assert self.keys is not None
                self.keys = None
            case KeyboardLocks():
                assert self.keys is not None
                assert not self.knows_locks
                self.knows_locks = True
            case KeyboardKey():
                assert self.keys is not None
                assert self.knows_locks or self.had_lock_key or not event.down
                assert (event.code in self.keys) != event.down
                self.keys ^= {event.code}
            case PointerEnter() | PointerMotion():
                assert (self.buttons is None) == isinstance(event, PointerEnter)
                self.buttons = self.buttons or set()
                assert (event.width, event.height) == AREA[2:]
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
        if not isinstance(event, KeyboardEnter | KeyboardLeave | KeyboardKey | KeyboardLocks):
            assert self.framed == (not isinstance(event, PointerFrame))
            self.framed = isinstance(event, PointerFrame)


@given(st.lists(device_events | focus_events | key_maps, max_size=60))
def test_input_is_consistent(events: list[object]) -> None:
    """Enter comes first and leave last; no key is pressed or released twice; each pointer event is in a frame; nothing stays held."""
    guest = Guest()
    window = WindowInput(guest.hear, lambda: AREA)
    for event in events:
        window.handle(event)
        assert guest.framed
    window.leave()
    assert (guest.keys, guest.buttons) == (None, None)
    assert (window.keyboard, window.pointer) == (KeyboardState.AWAY, PointerState.OUTSIDE)


@given(maps)
def test_keys_that_are_down_already(keys: bytes) -> None:
    """The guest gets the keys whose bits are set in KeymapNotify as keys that are down."""
    guest = Guest()
    window = WindowInput(guest.hear, lambda: AREA)
    window.handle(focus_event(9, 3))
    window.handle(key_map(keys))
    down = {index for index in range(1, 248) if keys[index // 8] >> index % 8 & 1}
    assert guest.keys == down
    assert window.keyboard is KeyboardState.FOCUSED


def test_keys_without_focus_follow_the_pointer() -> None:
    """Keys that come without a focus go to the guest until the pointer leaves its window."""
    guest = Guest()
    window = WindowInput(guest.hear, lambda: AREA)
    window.handle(device_event(7, 0, (15, 25)))
    window.handle(device_event(2, 38, (15, 25)))
    assert (window.keyboard, guest.keys) == (KeyboardState.FOLLOWS_POINTER, {30})
    window.handle(device_event(8, 0, (-1, 25)))
    assert (window.keyboard, guest.keys) == (KeyboardState.AWAY, None)


def test_a_pointer_that_is_dragged_out_leaves_with_its_last_button() -> None:
    """The guest has the pointer until the last button is released, or until it is over the window again and leaves."""
    guest = Guest()
    window = WindowInput(guest.hear, lambda: AREA)
    for button in (1, 3):
        window.handle(device_event(4, button, (15, 25)))
    window.handle(device_event(8, 0, (-1, 25)))
    assert (window.pointer, guest.buttons) == (PointerState.DRAGGED_OUT, {0x110, 0x111})
    window.handle(device_event(5, 1, (-1, 25)))
    assert (window.pointer, guest.buttons) == (PointerState.DRAGGED_OUT, {0x111})
    window.handle(device_event(5, 3, (-1, 25)))
    assert (window.pointer, guest.buttons) == (PointerState.OUTSIDE, None)


sizes = st.tuples(st.integers(1, 16384), st.integers(1, 16384))


@given(sizes, sizes)
def test_fit(size: tuple[int, int], window: tuple[int, int]) -> None:
    """`fit` makes the picture as large as possible, in the middle, with its aspect ratio."""
    left, top, width, height = picture_area("fit", size, window)
    assert (width, height) in ((window[0], height), (width, window[1]))
    assert 1 <= width <= window[0]
    assert 1 <= height <= window[1]
    assert abs(window[0] - width - 2 * left) <= 1
    assert abs(window[1] - height - 2 * top) <= 1
    if width > 1 and height > 1:
        assert abs(width * size[1] - height * size[0]) <= max(size)


@given(sizes, sizes)
def test_stretch_and_none(size: tuple[int, int], window: tuple[int, int]) -> None:
    """`stretch` fills the window; `none` keeps the size, in the middle."""
    assert picture_area("stretch", size, window) == (0, 0, *window)
    left, top, *shape = picture_area("none", size, window)
    assert tuple(shape) == size
    assert abs(window[0] - size[0] - 2 * left) <= 1
    assert abs(window[1] - size[1] - 2 * top) <= 1
