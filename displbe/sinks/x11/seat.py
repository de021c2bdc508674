"""What the keyboard and the pointer say to one window, for its guest (displbe.sinks.seat).

X's key codes are Linux's plus eight, with every server that has evdev's or libinput's keymap; buttons 4 to 7 are the wheel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import xcffib.xproto as x

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

from .server import Event

__all__ = ["Place", "WindowSeat"]

KEYCODE: Final = 8
BUTTONS: Final = {1: 0x110, 2: 0x112, 3: 0x111, 8: 0x113, 9: 0x114}
"""BTN_LEFT, BTN_MIDDLE, BTN_RIGHT, BTN_SIDE, BTN_EXTRA."""
WHEEL: Final = {4: (120, 0), 5: (-120, 0), 6: (0, -120), 7: (0, 120)}
"""Vertical and horizontal: up, down, left, right."""

Place = tuple[int, int, int, int]
"""x, y, width, height in pixels: where the picture lies in its window."""


class WindowSeat:
    """Tells what a window is sent. `place` says where the picture lies in it."""

    def __init__(self, tell: Callable[[SeatEvent], None], place: Callable[[], Place]) -> None:
        self._tell = tell
        self._place = place
        self._typing = False
        self._follows_pointer = False
        """The keyboard is ours because the pointer is: nobody has the focus."""
        self._awaits_keys = False
        """The focus has come; which keys are down comes with the next event."""
        self._keys: set[int] = set()
        self._pointed = False
        self._there = (0.0, 0.0, 0, 0)
        """Where the pointer was told to be, and the size of the picture."""
        self._buttons: set[int] = set()
        self._left = False
        """The pointer has left the window with a button down: it goes on telling, until that is let go."""

    def hear(self, event: Event) -> None:
        """An event of the window, or one that is none of ours."""
        match event:
            case x.KeyPressEvent():
                self._key(event.detail - KEYCODE, True)
            case x.KeyReleaseEvent():
                self._key(event.detail - KEYCODE, False)
            case x.FocusInEvent() if event.detail != x.NotifyDetail.Inferior:
                self._awaits_keys = not self._typing
            case x.FocusOutEvent() if event.detail != x.NotifyDetail.Inferior:
                self._keyboard_leaves()
            case x.KeymapNotifyEvent() if self._awaits_keys:
                self._keyboard_enters(
                    8 * index + bit
                    for index, octet in enumerate(event.keys)
                    for bit in range(8)
                    if int(octet) >> bit & 1
                )
            case x.EnterNotifyEvent():
                self._point(event.event_x, event.event_y)
            case x.MotionNotifyEvent():
                self._point(event.event_x, event.event_y)
            case x.LeaveNotifyEvent():
                self._pointer_goes()
            case x.ButtonPressEvent():
                self._point(event.event_x, event.event_y)
                self._button(event.detail, True)
            case x.ButtonReleaseEvent():
                self._button(event.detail, False)

    def leave(self) -> None:
        """The window goes, or cannot be seen."""
        self._keyboard_leaves()
        self._pointer_leaves()

    def _keyboard_enters(self, keys: Iterable[int]) -> None:
        self._awaits_keys = False
        self._typing = True
        self._keys = {key for key in keys if key > 0}
        self._tell(KeyboardEnter(tuple(sorted(self._keys))))

    def _keyboard_leaves(self) -> None:
        self._awaits_keys = self._follows_pointer = False
        if self._typing:
            self._typing = False
            self._keys.clear()
            self._tell(KeyboardLeave())

    def _key(self, code: int, down: bool) -> None:
        if not self._typing:
            self._follows_pointer = not self._awaits_keys
            self._keyboard_enters(())
        if code <= 0 or down == (code in self._keys):
            return  # a repetition, or let go elsewhere
        (self._keys.add if down else self._keys.discard)(code)
        self._tell(KeyboardKey(code, down))

    def _point(self, event_x: int, event_y: int) -> None:
        left, top, width, height = self._place()
        # On the borders it is at the picture's edge.
        at = float(min(max(event_x - left, 0), width)), float(min(max(event_y - top, 0), height))
        there = (*at, width, height)
        self._left = False
        if self._pointed and there == self._there:
            return
        self._tell(PointerMotion(*there) if self._pointed else PointerEnter(*there))
        self._tell(PointerFrame())
        self._pointed = True
        self._there = there

    def _button(self, number: int, down: bool) -> None:
        if number in WHEEL:
            if down:
                self._tell(PointerAxis(*WHEEL[number]))
                self._tell(PointerFrame())
        elif number in BUTTONS and down != (number in self._buttons):
            (self._buttons.add if down else self._buttons.discard)(number)
            self._tell(PointerButton(BUTTONS[number], down))
            self._tell(PointerFrame())
        if self._left and not self._buttons:
            self._pointer_leaves()

    def _pointer_goes(self) -> None:
        if self._follows_pointer:
            self._keyboard_leaves()
        self._left = True
        if not self._buttons:
            self._pointer_leaves()

    def _pointer_leaves(self) -> None:
        self._left = False
        self._buttons.clear()
        if self._pointed:
            self._pointed = False
            self._tell(PointerLeave())
            self._tell(PointerFrame())
