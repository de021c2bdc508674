"""Turns the contacts on a touchpad into motions of the pointer and turns of the wheel.

One finger moves the pointer. Two fingers turn the wheel, in the direction in which a wheel would be rolled; while a button of the pad is
down, the finger that moves faster moves the pointer instead, so that one finger can hold a clickpad down while another drags. Three and
more fingers do nothing. A frame in which a finger is put down or lifted moves nothing: the kernel's ABS_X and ABS_Y then jump to another
finger (input_mt_report_pointer_emulation), and so do the positions of pads that report fewer contacts than there are fingers.

Taps, gestures, and clicks with two fingers are not recognized.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from displbe.input.event_codes import (
    ABS_MT_SLOT,
    ABS_X,
    ABS_Y,
    BTN_LEFT,
    BTN_TASK,
    BTN_TOOL_DOUBLETAP,
    BTN_TOOL_FINGER,
    BTN_TOOL_QUADTAP,
    BTN_TOOL_QUINTTAP,
    BTN_TOOL_TRIPLETAP,
    BTN_TOUCH,
)
from displbe.input.wheel import UNITS_PER_DETENT, WheelDetents

from .capabilities import SLOT_FIELDS, AbsAxis, Capabilities, Slot, Snapshot

__all__ = ["Touchpad"]

PIXELS_PER_MM: Final = 10
"""Pixels that the pointer moves for a millimetre, on a pad that reports its resolution."""
PIXELS_PER_WIDTH: Final = 1000
"""Pixels that the pointer moves for the whole width of another pad."""
PIXELS_PER_DETENT: Final = 30
"""Pixels that the pointer would move while two fingers turn the wheel by one detent."""
MAX_STEP: Final = 200
"""Pixels. A finger that seems to move farther in one frame is another finger, which the pad cannot tell apart (20 mm; 2 m/s at 100 Hz)."""
FINGERS: Final = {
    BTN_TOOL_FINGER: 1,
    BTN_TOOL_DOUBLETAP: 2,
    BTN_TOOL_TRIPLETAP: 3,
    BTN_TOOL_QUADTAP: 4,
    BTN_TOOL_QUINTTAP: 5,
}
"""The number of fingers that a button stands for (event-codes.rst). A pad may report fewer contacts."""

Contacts: TypeAlias = dict[tuple[int, int], tuple[int, int]]
"""Slot and tracking ID of each contact -> its position in the device's units."""


class Touchpad:
    """The contacts of one touchpad."""

    def __init__(self, capabilities: Capabilities, snapshot: Snapshot) -> None:
        self._scale = _scales(capabilities)
        """Pixels for a unit of each axis."""
        self._reports_touch = BTN_TOUCH in capabilities.keys
        self._slots = [Slot() for _ in range(capabilities.slots)]
        """The multi-touch slots; empty: the pad reports one position."""
        self._current = 0
        self._position = [0, 0]
        """ABS_X and ABS_Y."""
        self._keys: set[int] = set()
        """Buttons that are down, BTN_TOUCH and BTN_TOOL_… among them."""
        self._before: tuple[int, Contacts] = 0, {}
        """The number of fingers and the contacts at the end of the last frame."""
        self._rest = [0.0, 0.0]
        """The part of a pixel that the pointer has not moved yet."""
        self._turn = 0.0
        """The part of a unit of the wheel that it has not turned yet."""
        self._detents = WheelDetents()
        self.resync(snapshot)

    def absolute(self, code: int, value: int) -> None:
        """Handle an event of type EV_ABS."""
        if code in (ABS_X, ABS_Y):
            self._position[code - ABS_X] = value
        elif code == ABS_MT_SLOT:
            self._current = value
        elif (field := SLOT_FIELDS.get(code)) is not None and 0 <= self._current < len(self._slots):
            setattr(self._slots[self._current], field, value)

    def button(self, code: int, down: bool) -> None:
        """Handle a press or release of EV_KEY."""
        (self._keys.add if down else self._keys.discard)(code)

    def resync(self, snapshot: Snapshot) -> None:
        """Discard the frame, and continue from the device's present state."""
        self._keys = set(snapshot.keys)
        self._position = [snapshot.axes.get(ABS_X, 0), snapshot.axes.get(ABS_Y, 0)]
        self._current = snapshot.axes.get(ABS_MT_SLOT, 0)
        for mine, theirs in zip(self._slots, snapshot.slots, strict=False):
            mine.tracking, mine.x, mine.y = theirs.tracking, theirs.x, theirs.y
        self._before = 0, {}

    def end_frame(self) -> tuple[int, int, int]:
        """Handle SYN_REPORT. Return the motion of the pointer in pixels, and the detents of the wheel, positive up."""
        contacts = self._contacts()
        fingers = max([len(contacts), *(count for code, count in FINGERS.items() if code in self._keys)])
        (fingers_before, before), self._before = self._before, (fingers, contacts)
        if fingers != fingers_before or contacts.keys() != before.keys():
            self._rest, self._turn, self._detents = [0.0, 0.0], 0.0, WheelDetents()
            return 0, 0, 0
        moves = [
            tuple(
                (now - then) * scale for now, then, scale in zip(contacts[name], before[name], self._scale, strict=True)
            )
            for name in contacts
        ]
        limit = max(MAX_STEP, *self._scale)  # a single unit is no jump, however coarse the pad
        if any(abs(distance) > limit for move in moves for distance in move):
            return 0, 0, 0
        is_held = any(BTN_LEFT <= code <= BTN_TASK for code in self._keys)
        if moves and (fingers == 1 or is_held):
            return *self._slide(max(moves, key=lambda move: move[0] ** 2 + move[1] ** 2)), 0
        if moves and fingers == 2:
            return 0, 0, self._roll(sum(move[1] for move in moves) / len(moves))
        return 0, 0, 0

    def _contacts(self) -> Contacts:
        if self._reports_touch and BTN_TOUCH not in self._keys:
            return {}  # a finger that is near the pad, or hardly touches it
        if not self._slots:
            return {(0, 0): (self._position[0], self._position[1])}
        return {
            (number, slot.tracking): (slot.x, slot.y) for number, slot in enumerate(self._slots) if slot.tracking >= 0
        }

    def _slide(self, move: tuple[float, ...]) -> tuple[int, int]:
        """Return a motion in whole pixels. The remainder counts in a later frame."""
        exact = [rest + moved for rest, moved in zip(self._rest, move, strict=True)]
        whole = int(exact[0]), int(exact[1])
        self._rest = [exact[0] - whole[0], exact[1] - whole[1]]
        return whole

    def _roll(self, down: float) -> int:
        """Return the whole detents for a motion of two fingers in pixels, positive down."""
        self._turn -= down * UNITS_PER_DETENT / PIXELS_PER_DETENT
        units = int(self._turn)
        self._turn -= units
        if units:
            self._detents.turn(units)
        return self._detents.take()


def _scales(capabilities: Capabilities) -> tuple[float, float]:
    """Return the pixels for a unit of the X and the Y axis."""
    none = AbsAxis(0, 0)
    x, y = capabilities.abs_axes.get(ABS_X, none), capabilities.abs_axes.get(ABS_Y, none)
    if x.resolution > 0 and y.resolution > 0:
        return PIXELS_PER_MM / x.resolution, PIXELS_PER_MM / y.resolution
    scale = PIXELS_PER_WIDTH / max(1, x.maximum - x.minimum + 1)
    return scale, scale
