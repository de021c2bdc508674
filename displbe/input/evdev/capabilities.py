"""The capabilities and the present state of an evdev device (EVIOCGBIT, EVIOCGABS, EVIOCGKEY, EVIOCGMTSLOTS)."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from displbe.input.bindings import Role
from displbe.input.event_codes import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TOUCH_MAJOR,
    ABS_MT_TOUCH_MINOR,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_LEFT,
    BTN_MISC,
    BTN_TOUCH,
    REL_X,
    REL_Y,
)

__all__ = ["SLOT_FIELDS", "AbsAxis", "Capabilities", "InputEvent", "Slot", "Snapshot"]

InputEvent: TypeAlias = tuple[int, int, int]
"""Type, code and value of a struct input_event."""

MAX_SLOTS: Final = 256
"""A device that claims more multi-touch slots is treated as a device without slots."""


class AbsAxis(msgspec.Struct, frozen=True):
    """The range of an absolute axis (struct input_absinfo, EVIOCGABS)."""

    minimum: int
    maximum: int
    resolution: int = 0
    """Units for each millimetre; 0: the device does not report it."""

    def fraction(self, value: int) -> float:
        """Return the position of a value in the range, 0 to 1. The kernel passes on values outside the range; they give less or more."""
        span = self.maximum - self.minimum
        return (value - self.minimum) / span if span > 0 else 0.0


class Slot(msgspec.Struct):
    """A multi-touch slot with one contact, in the units of the device's axes. `tracking` is negative while there is no contact."""

    tracking: int = -1
    x: int = 0
    y: int = 0
    major: int = 0
    minor: int = 0
    orientation: int = 0


SLOT_FIELDS: Final = {
    ABS_MT_TRACKING_ID: "tracking",
    ABS_MT_POSITION_X: "x",
    ABS_MT_POSITION_Y: "y",
    ABS_MT_TOUCH_MAJOR: "major",
    ABS_MT_TOUCH_MINOR: "minor",
    ABS_MT_ORIENTATION: "orientation",
}
"""The field of Slot that an axis sets, in the order of Slot's fields."""


class Capabilities(msgspec.Struct, frozen=True):
    """The events that a device can report."""

    keys: frozenset[int] = frozenset()
    """Codes of EV_KEY: keys and buttons."""
    rel_axes: frozenset[int] = frozenset()
    """Codes of EV_REL."""
    abs_axes: dict[int, AbsAxis] = {}
    """Codes of EV_ABS and their ranges."""
    leds: frozenset[int] = frozenset()
    """Codes of EV_LED: lamps."""
    is_touchpad: bool = False
    """INPUT_PROP_POINTER: a touch moves a pointer; its position is not a position on a screen."""

    @property
    def is_absolute(self) -> bool:
        """Whether the device reports positions when it is used as a pointer."""
        return ABS_X in self.abs_axes and ABS_Y in self.abs_axes and not self.is_touchpad

    def fitness(self, role: Role) -> int:
        """Return how well the device suits a role; a higher number is better, 0 means not at all."""
        if role is Role.KEYBOARD:
            return sum(code < BTN_MISC for code in self.keys)
        if role is Role.POINTER:
            moves = {REL_X, REL_Y} <= self.rel_axes or {ABS_X, ABS_Y} <= self.abs_axes.keys()
            return moves + (moves and not self.keys.isdisjoint((BTN_LEFT, BTN_TOUCH)))
        is_screen = not self.is_touchpad
        is_multi_touch = ABS_MT_POSITION_X in self.abs_axes
        is_single_touch = ABS_X in self.abs_axes and BTN_TOUCH in self.keys
        return 2 * (is_multi_touch and is_screen) or int(is_single_touch and is_screen)

    @property
    def slots(self) -> int:
        """The number of slots of a multi-touch device of type B; 0: type A, or no multi-touch."""
        axis = self.abs_axes.get(ABS_MT_SLOT)
        return axis.maximum + 1 if axis is not None and axis.maximum < MAX_SLOTS else 0


class Snapshot(msgspec.Struct):
    """The state of a device at one moment: keys that are down, values of the absolute axes, slots."""

    keys: frozenset[int] = frozenset()
    axes: dict[int, int] = {}
    slots: list[Slot] = []
