"""Fingers on touchpads: the pointer never moves farther than the finger that moves it, however fingers are put down and lifted."""

from __future__ import annotations

import enum
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.guest_page import GuestPage

from displbe.input.bindings import Role
from displbe.input.evdev.capabilities import AbsAxis, Capabilities, InputEvent, Slot, Snapshot
from displbe.input.evdev.decoder import Decoder
from displbe.input.event_codes import (
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_LEFT,
    BTN_TOOL_DOUBLETAP,
    BTN_TOOL_FINGER,
    BTN_TOOL_QUADTAP,
    BTN_TOOL_QUINTTAP,
    BTN_TOOL_TRIPLETAP,
    BTN_TOUCH,
    EV_ABS,
    EV_KEY,
    EV_SYN,
    SYN_REPORT,
)
from displbe.input.features import Features
from displbe.input.guest_input import InputSource
from displbe.input.key_repeater import AutoRepeat
from displbe.wire.kbdif import Key, Motion

WIDTH: Final = 100
"""Millimetres."""
UNITS: Final = 40
"""Units for a millimetre: 4 units for a pixel of the pointer."""
TOOLS: Final = (BTN_TOOL_FINGER, BTN_TOOL_DOUBLETAP, BTN_TOOL_TRIPLETAP, BTN_TOOL_QUADTAP, BTN_TOOL_QUINTTAP)


class PadKind(enum.Enum):
    """The way in which a pad reports its fingers."""

    SLOTS = "a slot for each finger"
    """Each finger has a slot."""
    TWO_SLOTS = "two slots"
    """It reports the positions of two fingers, and counts the others."""
    SEMI = "a bounding box"
    """INPUT_PROP_SEMI_MT: two slots with the corners of the box around all fingers."""
    SINGLE = "one position"
    """ABS_X and ABS_Y of the oldest finger, and the number of fingers."""


class Pad:
    """A touchpad with fingers, as drivers/input/input-mt.c reports them, and the guest that it moves the pointer of."""

    def __init__(self, kind: PadKind = PadKind.SLOTS, resolution: int = UNITS, height: int = 60) -> None:
        self.kind = kind
        self.fingers: dict[int, tuple[int, int, int]] = {}
        """The fingers that are down, in order: name -> tracking ID, x and y in units."""
        self.path = [0, 0]
        """The sum of the pointer's motions, all taken positive."""
        self.at = [0, 0]
        """The pointer's position."""
        self.wheel = 0
        self.keys: list[tuple[int, int]] = []
        self._tracking = 0
        self._reported: dict[tuple[int, int, int], int] = {}
        """Type, slot (or 0) and code of what was reported last -> the value, since the kernel reports changes."""
        self._slot_of: dict[int, int] = {}
        x, y = AbsAxis(0, WIDTH * UNITS - 1, resolution), AbsAxis(0, height * UNITS - 1, resolution)
        slots = {PadKind.SLOTS: 10, PadKind.SINGLE: 0}.get(kind, 2)
        axes = {ABS_X: x, ABS_Y: y}
        if slots:
            axes |= {ABS_MT_SLOT: AbsAxis(0, slots - 1), ABS_MT_POSITION_X: x, ABS_MT_POSITION_Y: y}
            axes[ABS_MT_TRACKING_ID] = AbsAxis(0, 65535)
        capabilities = Capabilities(keys=frozenset((BTN_LEFT, BTN_TOUCH, *TOOLS)), abs_axes=axes, is_touchpad=True)
        self._slots = slots
        snapshot = Snapshot(slots=[Slot() for _ in range(slots)])
        self._decoder = Decoder(InputSource("pad", repeats=False), capabilities, snapshot)
        self._page = GuestPage(Features(), AutoRepeat())

    def put(self, finger: int, x: int, y: int) -> None:
        """Put a finger down, in units."""
        self._tracking += 1
        self.fingers[finger] = self._tracking, x, y

    def lift(self, finger: int) -> None:
        """Lift a finger."""
        self.fingers.pop(finger, None)

    def move(self, finger: int, dx: int, dy: int) -> None:
        """Move a finger, in units."""
        if finger in self.fingers:
            tracking, x, y = self.fingers[finger]
            self.fingers[finger] = tracking, x + dx, y + dy

    def frame(self, *more: InputEvent) -> tuple[int, int, int]:
        """Report a frame. Return the motions of the pointer and the wheel that the guest got."""
        events = list(more)
        if self._slots:
            for number, (tracking, x, y) in enumerate(self._contacts()):
                changed = [
                    (code, value)
                    for code, value in (
                        (ABS_MT_TRACKING_ID, tracking),
                        (ABS_MT_POSITION_X, x),
                        (ABS_MT_POSITION_Y, y),
                    )
                    if (tracking >= 0 or code == ABS_MT_TRACKING_ID) and self._changes(EV_ABS, number, code, value)
                ]
                if changed:
                    events.append((EV_ABS, ABS_MT_SLOT, number))
                    events += [(EV_ABS, code, value) for code, value in changed]
        down = len(self.fingers)
        for code, is_down in ((BTN_TOUCH, down > 0), *((tool, down == n) for n, tool in enumerate(TOOLS, 1))):
            if self._changes(EV_KEY, 0, code, int(is_down)):
                events.append((EV_KEY, code, int(is_down)))
        if self.fingers:
            _, *oldest = min(self.fingers.values())
            events += [
                (EV_ABS, code, value)
                for code, value in zip((ABS_X, ABS_Y), oldest, strict=True)
                if self._changes(EV_ABS, 0, code, value)
            ]
        self._decoder.decode([*events, (EV_SYN, SYN_REPORT, 0)], self._page.guest_input, frozenset((Role.POINTER,)))
        return self._take()

    def _changes(self, kind: int, slot: int, code: int, value: int) -> bool:
        initial = -1 if code == ABS_MT_TRACKING_ID else 0
        changed = self._reported.get((kind, slot, code), initial) != value
        self._reported[kind, slot, code] = value
        return changed

    def _contacts(self) -> list[tuple[int, int, int]]:
        """Return tracking ID, x and y of each slot."""
        none = (-1, 0, 0)
        if self.kind is PadKind.SEMI:
            if not self.fingers:
                return [none, none]
            xs, ys = zip(*((x, y) for _, x, y in self.fingers.values()), strict=True)
            return [(1, min(xs), min(ys)), (2, max(xs), max(ys)) if len(self.fingers) > 1 else none]
        self._slot_of = {
            tracking: slot
            for tracking, slot in self._slot_of.items()
            if any(f[0] == tracking for f in self.fingers.values())
        }
        for tracking, _, _ in self.fingers.values():
            free = [slot for slot in range(self._slots) if slot not in self._slot_of.values()]
            if tracking not in self._slot_of and free:
                self._slot_of[tracking] = free[0]
        contacts = [none] * self._slots
        for finger in self.fingers.values():
            if finger[0] in self._slot_of:
                contacts[self._slot_of[finger[0]]] = finger
        return contacts

    def _take(self) -> tuple[int, int, int]:
        moved = [0, 0, 0]
        for event in self._page.take_events():
            if isinstance(event, Motion):
                moved = [moved[0] + event.rel_x, moved[1] + event.rel_y, moved[2] - event.rel_z]
            elif isinstance(event, Key):
                self.keys.append((event.keycode, event.pressed))
        self.at = [self.at[0] + moved[0], self.at[1] + moved[1]]
        self.wheel += moved[2]
        return moved[0], moved[1], moved[2]


FINGER: Final = st.integers(0, 4)
PLACE: Final = st.tuples(st.integers(0, WIDTH * UNITS - 1), st.integers(0, 60 * UNITS - 1))
STEP: Final = st.tuples(st.integers(-400, 400), st.integers(-400, 400))
ACT: Final = st.one_of(
    st.tuples(st.just("put"), FINGER, PLACE),
    st.tuples(st.just("lift"), FINGER, st.just((0, 0))),
    st.tuples(st.just("move"), FINGER, STEP),
    st.tuples(st.just("press"), FINGER, st.just((0, 0))),
)


@pytest.mark.parametrize("kind", PadKind)
@given(frames=st.lists(st.lists(ACT, min_size=1, max_size=4), max_size=30))
def test_the_pointer_moves_no_farther_than_a_finger(
    kind: PadKind, frames: list[list[tuple[str, int, tuple[int, int]]]]
) -> None:
    pad = Pad(kind)
    pressed = False
    for acts in frames:
        before = dict(pad.fingers)
        more: list[InputEvent] = []
        for act, finger, (x, y) in acts:
            match act:
                case "put" if finger not in pad.fingers:
                    pad.put(finger, x, y)
                case "lift":
                    pad.lift(finger)
                case "move":
                    pad.move(finger, x, y)
                case "press":
                    pressed = not pressed
                    more.append((EV_KEY, BTN_LEFT, int(pressed)))
        dx, dy, wheel = pad.frame(*more)
        now = dict(pad.fingers)
        stayed = [name for name in now if name in before and before[name][0] == now[name][0]]
        farthest = max(
            (((now[n][1] - before[n][1]) ** 2 + (now[n][2] - before[n][2]) ** 2) ** 0.5 for n in stayed), default=0.0
        )
        is_blind = kind in (PadKind.SEMI, PadKind.SINGLE) and len(now) == len(before)
        if is_blind and len(stayed) != len(now):
            assert max(abs(dx), abs(dy)) <= 200, "such a pad cannot tell that another finger is there"
            continue
        if len(stayed) != len(now) or len(now) != len(before):
            assert (dx, dy, wheel) == (0, 0, 0), "a finger was put down or lifted"
        if kind is PadKind.SEMI and len(now) > 1:
            continue  # the corners of a box are no fingers
        assert (dx**2 + dy**2) ** 0.5 <= farthest / 4 + 2**0.5
        assert abs(wheel) <= farthest / 4 / 30 + 1
        if len(now) != 1 and not pressed:
            assert (dx, dy) == (0, 0), "only one finger moves the pointer"


def test_one_finger() -> None:
    pad = Pad()
    pad.put(0, 1000, 1000)
    assert pad.frame() == (0, 0, 0)
    for _ in range(10):
        pad.move(0, 6, -2)
        pad.frame()
    assert pad.at == [15, -5], "10 pixels for a millimetre, and no rounding away of slow motions"


def test_a_pad_without_a_resolution_is_a_thousand_pixels_wide() -> None:
    pad = Pad(resolution=0)
    pad.put(0, 0, 0)
    pad.frame()
    pad.move(0, 400, 400)
    assert pad.frame() == (100, 100, 0)


@pytest.mark.parametrize("kind", PadKind)
def test_a_second_finger_scrolls(kind: PadKind) -> None:
    """Down as a wheel that is rolled towards the user: negative."""
    pad = Pad(kind)
    pad.put(0, 1000, 1000)
    pad.frame()
    pad.put(1, 3000, 1200)
    pad.frame()
    for _ in range(6):
        pad.move(0, 0, 60)
        pad.move(1, 0, 60)
        pad.frame()
    assert (pad.at, pad.wheel) == ([0, 0], -3)
    pad.lift(0)
    assert pad.frame() == (0, 0, 0), "ABS_X jumps to the other finger"
    pad.move(1, 40, 0)
    assert pad.frame() == (10, 0, 0)


def test_three_fingers_do_nothing() -> None:
    pad = Pad(PadKind.TWO_SLOTS)
    for finger in range(3):
        pad.put(finger, 1000 * finger, 1000)
    pad.frame()
    for finger in range(3):
        pad.move(finger, 300, 300)
    assert pad.frame() == (0, 0, 0)


def test_another_finger_in_the_same_frame() -> None:
    """The number of fingers stays the same, and so do the buttons; the position jumps."""
    for kind in PadKind:
        pad = Pad(kind)
        pad.put(0, 100, 100)
        pad.frame()
        pad.lift(0)
        pad.put(1, 3000, 2000)
        assert pad.frame() == (0, 0, 0)


def test_a_clickpad_that_one_finger_holds_down_while_another_drags() -> None:
    pad = Pad()
    pad.put(0, 2000, 2300)
    pad.frame((EV_KEY, BTN_LEFT, 1))
    pad.put(1, 1000, 1000)
    pad.frame()
    pad.move(1, 40, 80)
    assert pad.frame() == (10, 20, 0)
    pad.frame((EV_KEY, BTN_LEFT, 0))
    assert pad.keys == [(BTN_LEFT, 1), (BTN_LEFT, 0)]


def test_a_finger_near_the_pad_moves_nothing() -> None:
    pad = Pad(PadKind.SINGLE)
    pad.put(0, 1000, 1000)
    pad.frame()
    pad.move(0, 400, 0)
    pad.frame((EV_KEY, BTN_TOUCH, 0))
    pad.move(0, 400, 0)
    assert pad.frame() == (0, 0, 0)
