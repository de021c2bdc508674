"""evdev's events as a Receiver is told them (Documentation/input/event-codes.rst, multi-touch-protocol.rst of Linux).

A frame, what comes up to SYN_REPORT, is one moment. It is told at its end: where the pointer is before the buttons that go down
there. The state of keys, axes and fingers is followed also while nobody listens, since the kernel says only what changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import msgspec

from .features import BTN_LEFT, BTN_TASK, KEY_OK
from .names import Role
from .sources.base import Receiver, Source

__all__ = ["Axis", "Decoder", "Description", "Event", "Slot", "State"]

# linux/input-event-codes.h; held against the header by the tests
EV_SYN: Final = 0
EV_KEY: Final = 1
EV_REL: Final = 2
EV_ABS: Final = 3
SYN_REPORT: Final = 0
SYN_MT_REPORT: Final = 2
SYN_DROPPED: Final = 3
REL_X: Final = 0
REL_Y: Final = 1
REL_WHEEL: Final = 8
REL_WHEEL_HI_RES: Final = 11
ABS_X: Final = 0
ABS_Y: Final = 1
ABS_MT_SLOT: Final = 47
ABS_MT_TOUCH_MAJOR: Final = 48
ABS_MT_TOUCH_MINOR: Final = 49
ABS_MT_ORIENTATION: Final = 52
ABS_MT_POSITION_X: Final = 53
ABS_MT_POSITION_Y: Final = 54
ABS_MT_TRACKING_ID: Final = 57
BTN_MISC: Final = 0x100
BTN_TOOL_PEN: Final = 0x140
BTN_TOUCH: Final = 0x14A
INPUT_PROP_POINTER: Final = 0
DETENT: Final = 120
"""REL_WHEEL_HI_RES: units of one detent."""

Event: TypeAlias = tuple[int, int, int]
"""Type, code, value of a struct input_event."""


class Axis(msgspec.Struct, frozen=True):
    """The range of an absolute axis (EVIOCGABS)."""

    minimum: int
    maximum: int

    def fraction(self, value: int) -> float:
        """Where a value lies: 0 to 1. (A value outside the range, which the kernel lets pass, is less or more.)"""
        span = self.maximum - self.minimum
        return (value - self.minimum) / span if span > 0 else 0.0


class Slot(msgspec.Struct):
    """A finger of a touch screen, in its own units. `tracking` is negative while there is none."""

    tracking: int = -1
    x: int = 0
    y: int = 0
    major: int = 0
    minor: int = 0
    orientation: int = 0


_SLOT_FIELDS: Final = {
    ABS_MT_TRACKING_ID: "tracking",
    ABS_MT_POSITION_X: "x",
    ABS_MT_POSITION_Y: "y",
    ABS_MT_TOUCH_MAJOR: "major",
    ABS_MT_TOUCH_MINOR: "minor",
    ABS_MT_ORIENTATION: "orientation",
}


class Description(msgspec.Struct, frozen=True):
    """What a device can say."""

    keys: frozenset[int] = frozenset()
    wheels: frozenset[int] = frozenset()
    """Its relative axes."""
    axes: dict[int, Axis] = {}
    """Its absolute ones."""
    is_touchpad: bool = False
    """INPUT_PROP_POINTER: where it is touched moves a pointer, and is no place on a screen."""

    @property
    def is_absolute(self) -> bool:
        """Whether, as a pointer, it says where it is."""
        return ABS_X in self.axes and ABS_Y in self.axes and not self.is_touchpad

    def fitness(self, role: Role) -> int:
        """How much of this it can be; 0: it cannot."""
        if role is Role.KEYBOARD:
            return sum(code < BTN_MISC for code in self.keys)
        if role is Role.POINTER:
            moves = {REL_X, REL_Y} <= self.wheels or {ABS_X, ABS_Y} <= self.axes.keys()
            return moves + (moves and not self.keys.isdisjoint((BTN_LEFT, BTN_TOUCH)))
        is_screen = not self.is_touchpad
        many = ABS_MT_POSITION_X in self.axes
        return 2 * (many and is_screen) or int(ABS_X in self.axes and BTN_TOUCH in self.keys and is_screen)

    @property
    def slots(self) -> int:
        """Fingers of multi-touch type B; 0: of type A, or none."""
        axis = self.axes.get(ABS_MT_SLOT)
        return axis.maximum + 1 if axis is not None and axis.maximum < 256 else 0


class State(msgspec.Struct):
    """What a device says when it is asked: the keys that are down, values of axes, fingers."""

    keys: frozenset[int] = frozenset()
    axes: dict[int, int] = {}
    slots: list[Slot] = []


class Decoder:
    """One device. `state` is how it is at first: what is down then was not meant for anybody here."""

    def __init__(self, source: Source, description: Description, state: State) -> None:
        self._source = source
        self._description = description
        self._down = set(state.keys)
        self._keys: list[tuple[int, int]] = []
        self._pointer = _Pointer(source, description, state)
        self._fingers: _Fingers
        if description.slots:
            self._fingers = _Slots(source, description, state)
        elif ABS_MT_POSITION_X in description.axes:
            self._fingers = _Anonymous(source, description)
        elif ABS_X in description.axes and BTN_TOUCH in description.keys:
            self._fingers = _OneFinger(source, description, state)
        else:
            self._fingers = _Fingers(source, description)
        self._adds_up = not description.axes
        """Motions that are read together are told as one. (Places are told each: a pen draws.)"""
        # Where a finger or a pen is the only button, it is the left one.
        self._touch_is_left = BTN_LEFT not in description.keys and not description.is_touchpad

    def decode(self, events: Iterable[Event], receiver: Receiver | None, roles: frozenset[Role]) -> bool:
        """Tell a receiver what these events say; None: nobody. True: events were lost; the rest is not looked at, `resync` is needed."""
        lost = waits = False
        for kind, code, value in events:
            if kind == EV_SYN:
                if code == SYN_REPORT:
                    waits = self._adds_up and not self._keys
                    if not waits:
                        self._report(receiver, roles)
                elif code == SYN_DROPPED:
                    lost = True
                    break
                elif code == SYN_MT_REPORT:
                    self._fingers.separate()
            elif kind == EV_KEY:
                self._keys.append((code, value))
            elif kind == EV_REL:
                self._pointer.relative(code, value)
            elif kind == EV_ABS:
                self._pointer.absolute(code, value)
                self._fingers.absolute(code, value)
        if waits and not lost:
            self._report(receiver, roles)
        if receiver is not None:
            receiver.flush()
        return lost

    def resync(self, state: State, receiver: Receiver | None, roles: frozenset[Role]) -> None:
        """Events were lost, that of a frame too: tell what has changed since, by how the device is now."""
        self._keys.clear()
        self._pointer.forget_frame()
        for code in sorted(self._down - state.keys):
            self._keys.append((code, 0))
        for code in sorted(state.keys - self._down):
            self._keys.append((code, 1))
        self._pointer.resync(state)
        self._fingers.resync(state)
        self._report(receiver, roles)
        if receiver is not None:
            receiver.flush()

    def _report(self, receiver: Receiver | None, roles: frozenset[Role]) -> None:
        keys = self._keys
        for code, value in keys:
            if value:
                self._down.add(code)
            else:
                self._down.discard(code)
            if code == BTN_TOUCH:
                self._fingers.touching(bool(value))
            if value == 1 and BTN_TOOL_PEN <= code <= BTN_TOUCH:
                self._pointer.jump = True
        self._pointer.report(receiver if Role.POINTER in roles else None)
        if receiver is not None:
            for code, value in keys:
                self._tell_key(code, value, receiver, roles)
        self._fingers.report(receiver if Role.TOUCH in roles else None)
        self._keys.clear()

    def _tell_key(self, code: int, value: int, receiver: Receiver, roles: frozenset[Role]) -> None:
        if code < BTN_MISC or code >= KEY_OK:
            if Role.KEYBOARD in roles:
                receiver.key(self._source, code, value)
        elif Role.POINTER in roles:
            if BTN_LEFT <= code <= BTN_TASK:
                receiver.key(self._source, code, value)
            elif code == BTN_TOUCH and self._touch_is_left and Role.TOUCH not in roles:
                receiver.key(self._source, BTN_LEFT, value)


class _Pointer:
    """REL_X, REL_Y, the wheel, ABS_X, ABS_Y."""

    def __init__(self, source: Source, description: Description, state: State) -> None:
        self.jump = True
        self._source = source
        self._axes = description.axes
        self._is_absolute = description.is_absolute
        self._is_touchpad = description.is_touchpad
        # A wheel of high resolution says each detent also as REL_WHEEL; one that does not is counted here.
        self._hi_res = REL_WHEEL_HI_RES in description.wheels and REL_WHEEL not in description.wheels
        self._turned = 0
        self._dx = self._dy = self._wheel = 0
        self._x, self._y = state.axes.get(ABS_X, 0), state.axes.get(ABS_Y, 0)
        self._before = float(self._x), float(self._y)
        self._moved = False

    def relative(self, code: int, value: int) -> None:
        if code == REL_X:
            self._dx += value
        elif code == REL_Y:
            self._dy += value
        elif code == REL_WHEEL:
            self._wheel += value
        elif code == REL_WHEEL_HI_RES and self._hi_res:
            if (self._turned < 0) != (value < 0):
                self._turned = 0
            self._turned += value
            detents = int(self._turned / DETENT)
            self._turned -= detents * DETENT
            self._wheel += detents
        # REL_HWHEEL: kbdif has no horizontal wheel.

    def absolute(self, code: int, value: int) -> None:
        if code == ABS_X:
            self._x, self._moved = value, True
        elif code == ABS_Y:
            self._y, self._moved = value, True

    def resync(self, state: State) -> None:
        self._x, self._y = state.axes.get(ABS_X, self._x), state.axes.get(ABS_Y, self._y)
        self._moved = self._is_absolute

    def forget_frame(self) -> None:
        self._dx = self._dy = self._wheel = 0
        self._moved = False

    def report(self, receiver: Receiver | None) -> None:
        if self._is_touchpad:
            self._slide()
        if receiver is not None:
            if self._is_absolute and (self._moved or self._wheel):
                x, y = self._axes[ABS_X].fraction(self._x), self._axes[ABS_Y].fraction(self._y)
                receiver.point(self._source, x, y, self._wheel, jump=self.jump)
                self._wheel = 0
            if self._dx or self._dy or self._wheel:
                receiver.move(self._dx, self._dy, self._wheel)
        self.forget_frame()
        self.jump = False

    def _slide(self) -> None:
        """A finger over a touchpad: a thousandth of its width is a pixel."""
        here = float(self._x), float(self._y)
        if not self.jump and ABS_X in self._axes:
            pixel = max(1, self._axes[ABS_X].maximum - self._axes[ABS_X].minimum + 1) / 1000
            dx, dy = (int((now - before) / pixel) for now, before in zip(here, self._before, strict=True))
            self._dx += dx
            self._dy += dy
            here = self._before[0] + dx * pixel, self._before[1] + dy * pixel  # what is less than a pixel counts later
        self._before = here


class _Fingers:
    """Fingers of any kind of touch screen: how they are now, against what was told. Here: none."""

    def __init__(self, source: Source, description: Description) -> None:
        self._source = source
        self._axes = description.axes
        self._told: dict[int, Slot] = {}
        """By number, a copy of what was told last."""
        none = Axis(0, 0)
        self._x_axis = self._axes.get(ABS_MT_POSITION_X) or self._axes.get(ABS_X) or none
        self._y_axis = self._axes.get(ABS_MT_POSITION_Y) or self._axes.get(ABS_Y) or none
        spans = [axis.maximum - axis.minimum + 1 for axis in (self._x_axis, self._y_axis)]
        self._size = max(1.0, abs(spans[0] * spans[1]) ** 0.5)
        turn = self._axes.get(ABS_MT_ORIENTATION)
        self._quarter = turn.maximum if turn is not None else 0

    def absolute(self, code: int, value: int) -> None:
        """EV_ABS"""

    def separate(self) -> None:
        """SYN_MT_REPORT"""

    def touching(self, down: bool) -> None:
        """BTN_TOUCH"""

    def resync(self, state: State) -> None:
        """Take over how the device is."""

    def report(self, receiver: Receiver | None) -> None:
        """SYN_REPORT"""

    def _tell(self, now: dict[int, Slot], receiver: Receiver | None) -> None:
        """Tell the difference between `now` and what was told last."""
        before, self._told = self._told, {number: msgspec.structs.replace(slot) for number, slot in now.items()}
        if receiver is None:
            return
        source = self._source
        lifted = [number for number, slot in before.items() if _is_other(now.get(number), slot)]
        for number in lifted:
            receiver.touch_up(source, number)
        if any(number in now for number in lifted):
            receiver.touch_frame(source)  # up and down again under one number: two moments
        for number, slot in now.items():
            old = before.get(number)
            x, y = self._x_axis.fraction(slot.x), self._y_axis.fraction(slot.y)
            if old is None or number in lifted:
                receiver.touch_down(source, number, x, y)
                old = Slot(x=slot.x, y=slot.y)
            elif (old.x, old.y) != (slot.x, slot.y):
                receiver.touch_move(source, number, x, y)
            if (old.major, old.minor) != (slot.major, slot.minor):
                receiver.touch_shape(source, number, slot.major / self._size, slot.minor / self._size)
            if old.orientation != slot.orientation and self._quarter:
                receiver.touch_orientation(source, number, round(slot.orientation * 90 / self._quarter))
        receiver.touch_frame(source)


def _is_other(now: Slot | None, before: Slot) -> bool:
    return now is None or now.tracking != before.tracking


class _Slots(_Fingers):
    """Multi-touch type B: the kernel numbers the fingers."""

    def __init__(self, source: Source, description: Description, state: State) -> None:
        super().__init__(source, description)
        self._slots = [Slot() for _ in range(description.slots)]
        self._current = 0
        self._changed = False
        self.resync(state)
        self.report(None)

    def absolute(self, code: int, value: int) -> None:
        if code == ABS_MT_SLOT:
            self._current = value
        elif (field := _SLOT_FIELDS.get(code)) is not None and 0 <= self._current < len(self._slots):
            setattr(self._slots[self._current], field, value)
            self._changed = True

    def resync(self, state: State) -> None:
        self._changed = True
        for mine, theirs in zip(self._slots, state.slots, strict=False):
            for field in Slot.__struct_fields__:
                setattr(mine, field, getattr(theirs, field))
        self._current = state.axes.get(ABS_MT_SLOT, self._current)

    def report(self, receiver: Receiver | None) -> None:
        if self._changed:
            self._tell({number: slot for number, slot in enumerate(self._slots) if slot.tracking >= 0}, receiver)
        self._changed = False


class _Anonymous(_Fingers):
    """Multi-touch type A: every frame has all fingers, one after the other; with tracking ids, or without."""

    def __init__(self, source: Source, description: Description) -> None:
        super().__init__(source, description)
        self._finger: Slot | None = None
        self._frame: list[Slot] = []
        self._seen = False
        self._tracked = ABS_MT_TRACKING_ID in description.axes

    def absolute(self, code: int, value: int) -> None:
        field = _SLOT_FIELDS.get(code)
        if field is not None:
            self._finger = self._finger or Slot()
            setattr(self._finger, field, value)

    def separate(self) -> None:
        if self._finger is not None:
            self._frame.append(self._finger)
        self._finger = None
        self._seen = True

    def touching(self, down: bool) -> None:
        self._seen = self._seen or not down

    def resync(self, state: State) -> None:
        """The device cannot be asked: what is down is in its next frame."""
        self._finger, self._frame, self._seen = None, [], True

    def report(self, receiver: Receiver | None) -> None:
        if self._seen:  # else a frame without fingers: of keys, for one
            self._tell(self._match(self._frame), receiver)
        self._finger, self._frame, self._seen = None, [], False

    def _match(self, frame: list[Slot]) -> dict[int, Slot]:
        """Numbers for the fingers of a frame: that of the nearest one before, or of the same tracking id."""
        found: dict[int, Slot] = {}
        free = dict(self._told)
        pairs = sorted(
            (self._distance(old, slot), number, place)
            for number, old in free.items()
            for place, slot in enumerate(frame)
            if not self._tracked or old.tracking == slot.tracking
        )
        placed: set[int] = set()
        for _, number, place in pairs:
            if number not in found and place not in placed:
                found[number] = frame[place]
                placed.add(place)
        for place, slot in enumerate(frame):
            if place not in placed:
                number = next(
                    number for number in range(len(frame) + len(free)) if number not in found and number not in free
                )
                found[number] = slot
        if not self._tracked:
            for slot in found.values():
                slot.tracking = 0
        return dict(sorted(found.items()))

    @staticmethod
    def _distance(one: Slot, other: Slot) -> int:
        return (one.x - other.x) ** 2 + (one.y - other.y) ** 2


class _OneFinger(_Fingers):
    """A touch screen for one finger: ABS_X, ABS_Y and BTN_TOUCH."""

    def __init__(self, source: Source, description: Description, state: State) -> None:
        super().__init__(source, description)
        self._finger = Slot()
        self.resync(state)
        self.report(None)

    def absolute(self, code: int, value: int) -> None:
        if code == ABS_X:
            self._finger.x = value
        elif code == ABS_Y:
            self._finger.y = value

    def touching(self, down: bool) -> None:
        self._finger.tracking = 0 if down else -1

    def resync(self, state: State) -> None:
        self._finger.x = state.axes.get(ABS_X, self._finger.x)
        self._finger.y = state.axes.get(ABS_Y, self._finger.y)
        self._finger.tracking = 0 if BTN_TOUCH in state.keys else -1

    def report(self, receiver: Receiver | None) -> None:
        self._tell({0: self._finger} if self._finger.tracking >= 0 else {}, receiver)
