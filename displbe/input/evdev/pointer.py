"""Decodes a device's pointer events: REL_X, REL_Y, the wheel, ABS_X, ABS_Y (Documentation/input/event-codes.rst of Linux)."""

from __future__ import annotations

import enum
from collections.abc import Callable

from displbe.input.event_codes import ABS_X, ABS_Y, BTN_TOOL_PEN, BTN_TOUCH, REL_WHEEL, REL_WHEEL_HI_RES, REL_X, REL_Y
from displbe.input.guest_input import GuestInput, InputSource
from displbe.input.wheel import WheelDetents
from displbe.sinks.turn import Turn

from .capabilities import Capabilities, Snapshot
from .touchpad import Touchpad

__all__ = ["PointerDecoder", "PointerKind"]


class PointerKind(enum.Enum):
    """The way in which a device moves the pointer."""

    RELATIVE = "relative"
    """A mouse, which reports motions; or a device that is not a pointer."""
    ABSOLUTE = "absolute"
    """A tablet or touch screen: it reports positions on the screen."""
    TOUCHPAD = "touchpad"
    """It reports the positions of fingers on the pad (Touchpad)."""

    @classmethod
    def of(cls, capabilities: Capabilities) -> PointerKind:
        """Return the kind of a device."""
        if capabilities.is_touchpad:
            return cls.TOUCHPAD
        return cls.ABSOLUTE if capabilities.is_absolute else cls.RELATIVE


class PointerDecoder:
    """Collects the pointer events of one frame, and passes them on at its end. `turn` returns how the device is mounted."""

    def __init__(
        self,
        source: InputSource,
        capabilities: Capabilities,
        snapshot: Snapshot,
        turn: Callable[[], Turn] = lambda: Turn.NONE,
    ) -> None:
        self.kind = PointerKind.of(capabilities)
        self.jump = True
        """Whether the next position is a jump, not a motion from the last one: a pen or a finger has just come down."""
        self._source = source
        self._turn = turn
        self._axes = capabilities.abs_axes
        # A high-resolution wheel reports each detent as REL_WHEEL too. If a device does not, its units are counted.
        self._counts_units = REL_WHEEL_HI_RES in capabilities.rel_axes and REL_WHEEL not in capabilities.rel_axes
        self._detents = WheelDetents()
        self._dx = self._dy = self._wheel = 0
        self._x, self._y = snapshot.axes.get(ABS_X, 0), snapshot.axes.get(ABS_Y, 0)
        self._moved = False
        """Whether this frame has a position."""
        self._touchpad = Touchpad(capabilities, snapshot) if self.kind is PointerKind.TOUCHPAD else None

    def relative(self, code: int, value: int) -> None:
        """Handle an event of type EV_REL."""
        if code == REL_X:
            self._dx += value
        elif code == REL_Y:
            self._dy += value
        elif code == REL_WHEEL:
            self._wheel += value
        elif code == REL_WHEEL_HI_RES and self._counts_units:
            self._detents.turn(value)
            self._wheel += self._detents.take()
        # REL_HWHEEL is ignored: kbdif has no horizontal wheel.

    def absolute(self, code: int, value: int) -> None:
        """Handle an event of type EV_ABS."""
        if self._touchpad is not None:
            self._touchpad.absolute(code, value)
        elif code == ABS_X:
            self._x, self._moved = value, True
        elif code == ABS_Y:
            self._y, self._moved = value, True

    def button(self, code: int, down: bool) -> None:
        """Handle a press or release of EV_KEY."""
        if down and BTN_TOOL_PEN <= code <= BTN_TOUCH:
            self.jump = True
        if self._touchpad is not None:
            self._touchpad.button(code, down)

    def resync(self, snapshot: Snapshot) -> None:
        """Discard the frame, and continue from the device's present state."""
        self._discard_frame()
        self._x, self._y = snapshot.axes.get(ABS_X, self._x), snapshot.axes.get(ABS_Y, self._y)
        self._moved = self.kind is PointerKind.ABSOLUTE
        if self._touchpad is not None:
            self._touchpad.resync(snapshot)

    def end_frame(self, guest_input: GuestInput | None) -> None:
        """Handle SYN_REPORT: pass the frame on. None: no guest gets it."""
        if self._touchpad is not None:
            dx, dy, wheel = self._touchpad.end_frame()
            self._dx, self._dy, self._wheel = self._dx + dx, self._dy + dy, self._wheel + wheel
        if guest_input is not None:
            if self.kind is PointerKind.ABSOLUTE and (self._moved or self._wheel):
                position = self._axes[ABS_X].fraction(self._x), self._axes[ABS_Y].fraction(self._y)
                x, y = self._turn().upright(*position)
                guest_input.point(self._source, x, y, self._wheel, jump=self.jump)
                self._wheel = 0
            if self._dx or self._dy or self._wheel:
                guest_input.move(*self._turn().upright_motion(self._dx, self._dy), self._wheel)
        self._discard_frame()
        self.jump = False

    def _discard_frame(self) -> None:
        self._dx = self._dy = self._wheel = 0
        self._moved = False
