"""A compositor's seats: the keyboard, pointer and touch screen that have the focus on a guest's window (sinks/seat.py).

Here the compositor decides who has them. What it sends to the window of a guest's connector is for that guest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from displbe.input.feed import Feed
from displbe.input.focus import Claim
from displbe.input.names import Role
from displbe.input.translate import DETENT
from displbe.sinks.seat import (
    KeyboardKey,
    KeyboardLeave,
    PointerAxis,
    PointerButton,
    PointerEnter,
    PointerFrame,
    PointerLeave,
    PointerMotion,
    SeatEvent,
    Seats,
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)

from .base import Source

__all__ = ["listening"]


@contextlib.contextmanager
def listening(seats: Seats, claim: Claim, feed: Feed) -> Iterator[None]:
    """Give a guest what the windows of its connectors get, as far as its bindings name them, while the block lasts."""
    bindings = claim.terms.bindings
    names = dict.fromkeys(binding.id for binding in bindings if not binding.is_device)
    with contextlib.ExitStack() as stack:
        for name in names:
            roles = {binding.role for binding in bindings if binding.id == name}
            window = _Window(name, feed, roles)
            stack.callback(window.leave)
            stack.enter_context(seats.listening(claim.domid, name, window.hear))
        yield


class _Window:
    """What one window gets."""

    def __init__(self, name: str, feed: Feed, roles: set[Role]) -> None:
        # Each of the three is left by itself.
        self._keyboard, self._pointer, self._fingers = (
            Source(f"{name} {kind.name.lower()}", repeats=False) for kind in Role
        )
        self._feed = feed
        self._roles = roles
        self._at: tuple[float, float] | None = None
        self._jump = True
        self._turned = 0
        self._buttons: list[PointerButton] = []

    def hear(self, event: SeatEvent) -> None:
        """One event of a seat."""
        role = Role.TOUCH
        if isinstance(event, (KeyboardKey, KeyboardLeave)):
            role = Role.KEYBOARD
        elif isinstance(event, (PointerEnter, PointerMotion, PointerButton, PointerAxis, PointerFrame, PointerLeave)):
            role = Role.POINTER
        if role in self._roles:
            {Role.KEYBOARD: self._hear_key, Role.POINTER: self._hear_pointer, Role.TOUCH: self._hear_finger}[role](
                event
            )

    def leave(self) -> None:
        """The window has nobody's focus."""
        for source in (self._keyboard, self._pointer, self._fingers):
            self._feed.leave(source)
        self._feed.flush()

    def _hear_key(self, event: SeatEvent) -> None:
        # KeyboardEnter: what is down then was pressed for somebody else.
        if isinstance(event, KeyboardKey):
            self._feed.key(self._keyboard, event.code, int(event.down))
        else:
            self._feed.leave(self._keyboard)
        self._feed.flush()

    def _hear_pointer(self, event: SeatEvent) -> None:
        match event:
            case PointerEnter(x, y, width, height):
                self._at, self._jump = (x / width, y / height), True
            case PointerMotion(x, y, width, height):
                self._at = x / width, y / height
            case PointerAxis(vertical):
                if (self._turned < 0) != (vertical < 0):
                    self._turned = 0
                self._turned += vertical
            case PointerButton():
                self._buttons.append(event)
            case PointerFrame():
                self._report()
            case _:
                self._feed.leave(self._pointer)
                self._feed.flush()
                self._at, self._buttons = None, []

    def _report(self) -> None:
        """What belongs together: the position first, so that a button goes down where the pointer is."""
        wheel = int(self._turned / DETENT)
        self._turned -= wheel * DETENT
        if self._at is not None:
            self._feed.point(self._pointer, *self._at, wheel, jump=self._jump)
        elif wheel:
            self._feed.move(0, 0, wheel)
        for button in self._buttons:
            self._feed.key(self._pointer, button.code, int(button.down))
        self._at, self._jump, self._buttons = None, False, []
        self._feed.flush()

    def _hear_finger(self, event: SeatEvent) -> None:
        feed, source = self._feed, self._fingers
        match event:
            case TouchDown(finger, x, y, width, height):
                feed.touch_down(source, finger, x / width, y / height)
            case TouchMotion(finger, x, y, width, height):
                feed.touch_move(source, finger, x / width, y / height)
            case TouchShape(finger, major, minor, width, height):
                size = (width * height) ** 0.5
                feed.touch_shape(source, finger, major / size, minor / size)
            case TouchOrientation(finger, degrees):
                feed.touch_orientation(source, finger, round(degrees))
            case TouchUp(finger):
                feed.touch_up(source, finger)
            case TouchFrame():
                feed.touch_frame(source)
                feed.flush()
            case TouchCancel():
                feed.leave(source)
                feed.flush()
