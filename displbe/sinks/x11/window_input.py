"""Keyboard and pointer of one window: translates X events to the events of displbe.sinks.seat.

X key codes are Linux key codes plus 8 on every server that uses the keymap of evdev or libinput. Buttons 4 to 7 are the wheel.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Final

import xcffib.xproto as x

from displbe.sinks.seat import (
    LOCK_KEYS,
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

from .server import Event

__all__ = ["Area", "KeyboardState", "PointerState", "WindowInput"]

KEYCODE_OFFSET: Final = 8
BUTTONS: Final = {1: 0x110, 2: 0x112, 3: 0x111, 8: 0x113, 9: 0x114}
"""X button -> BTN_LEFT, BTN_MIDDLE, BTN_RIGHT, BTN_SIDE, BTN_EXTRA."""
WHEEL: Final = {4: (120, 0), 5: (-120, 0), 6: (0, -120), 7: (0, 120)}
"""X button -> vertical and horizontal, in 120ths of a detent: up, down, left, right."""

Area = tuple[int, int, int, int]
"""x, y, width, height of the picture in its window, in pixels."""


class KeyboardState(enum.Enum):
    """Whether the guest has the keyboard, and why."""

    AWAY = "away"
    """The guest does not have the keyboard."""
    FOCUS_ANNOUNCED = "focus announced"
    """The window has the focus; KeymapNotify, which says which keys are down, comes next."""
    FOCUSED = "focused"
    """The guest has the keyboard because its window has the focus."""
    FOLLOWS_POINTER = "follows pointer"
    """The guest has the keyboard because the pointer is over its window and no window has the focus."""


class PointerState(enum.Enum):
    """Where the pointer is."""

    OUTSIDE = "outside"
    """The pointer is not over the window."""
    INSIDE = "inside"
    """The pointer is over the window."""
    DRAGGED_OUT = "dragged out"
    """The pointer left the window with a button down. The guest gets its events until the last button is released."""


class WindowInput:
    """Passes a window's input events to `tell`. `area` returns where the picture lies in the window."""

    def __init__(self, tell: Callable[[SeatEvent], None], area: Callable[[], Area]) -> None:
        self.keyboard = KeyboardState.AWAY
        self.pointer = PointerState.OUTSIDE
        self.over_picture = True
        """Whether the pointer was over the picture, not on a black border, at the last event."""
        self._tell = tell
        self._area = area
        self._keys: set[int] = set()
        self._sent_locks = True
        """Whether the guest that has the keyboard knows the locks, or need not know them."""
        self._position = (0.0, 0.0, 0, 0)
        """The pointer's position and the size of the picture, as the last event gave them."""
        self._buttons: set[int] = set()

    @property
    def _has_keyboard(self) -> bool:
        return self.keyboard in (KeyboardState.FOCUSED, KeyboardState.FOLLOWS_POINTER)

    def handle(self, event: Event) -> None:
        """Handle an event of the window. Events other than input are ignored."""
        match event:
            case x.KeyPressEvent():
                self._key(event.detail - KEYCODE_OFFSET, True, event.state)
            case x.KeyReleaseEvent():
                self._key(event.detail - KEYCODE_OFFSET, False, event.state)
            case x.FocusInEvent() if event.detail != x.NotifyDetail.Inferior:
                if not self._has_keyboard:
                    self.keyboard = KeyboardState.FOCUS_ANNOUNCED
            case x.FocusOutEvent() if event.detail != x.NotifyDetail.Inferior:
                self._leave_keyboard()
            case x.KeymapNotifyEvent() if self.keyboard is KeyboardState.FOCUS_ANNOUNCED:
                down = (
                    8 * index + bit for index, byte in enumerate(event.keys) for bit in range(8) if int(byte) >> bit & 1
                )
                self._enter_keyboard(KeyboardState.FOCUSED, down)
            case x.EnterNotifyEvent() | x.MotionNotifyEvent():
                self._point(event.event_x, event.event_y)
            case x.LeaveNotifyEvent():
                self._pointer_left()
            case x.ButtonPressEvent():
                self._point(event.event_x, event.event_y)
                self._button(event.detail, True)
            case x.ButtonReleaseEvent():
                self._button(event.detail, False)

    def tell_locks(self) -> None:
        """Tell the guest the locks again before the next key: another listener may have come."""
        self._sent_locks = False

    def leave(self) -> None:
        """Take keyboard and pointer from the guest: the window is closed or hidden."""
        self._leave_keyboard()
        self._leave_pointer()

    def _enter_keyboard(self, state: KeyboardState, keys: Iterable[int]) -> None:
        self.keyboard = state
        self._keys = {key for key in keys if key > 0}
        self._sent_locks = not LOCK_KEYS.isdisjoint(self._keys)
        self._tell(KeyboardEnter(tuple(sorted(self._keys))))

    def _leave_keyboard(self) -> None:
        told, self.keyboard = self._has_keyboard, KeyboardState.AWAY
        if told:
            self._keys.clear()
            self._tell(KeyboardLeave())

    def _key(self, code: int, down: bool, modifiers: int) -> None:
        """Handle a key event. `modifiers`: those that were down or locked just before it."""
        match self.keyboard:
            case KeyboardState.AWAY:
                self._enter_keyboard(KeyboardState.FOLLOWS_POINTER, ())
            case KeyboardState.FOCUS_ANNOUNCED:
                self._enter_keyboard(KeyboardState.FOCUSED, ())
        if code <= 0 or down == (code in self._keys):
            return  # a repetition, or the release of a key that was pressed in another window
        if down and not self._sent_locks:
            self._sent_locks = True
            self._tell(KeyboardLocks(bool(modifiers & x.KeyButMask.Lock), bool(modifiers & x.KeyButMask.Mod2)))
        (self._keys.add if down else self._keys.discard)(code)
        self._tell(KeyboardKey(code, down))

    def _point(self, event_x: int, event_y: int) -> None:
        left, top, width, height = self._area()
        self.over_picture = left <= event_x < left + width and top <= event_y < top + height
        # On the black borders, the pointer counts as being at the picture's edge.
        at = float(min(max(event_x - left, 0), width)), float(min(max(event_y - top, 0), height))
        position = (*at, width, height)
        was_outside = self.pointer is PointerState.OUTSIDE
        self.pointer = PointerState.INSIDE
        if was_outside or position != self._position:
            self._position = position
            self._tell(PointerEnter(*position) if was_outside else PointerMotion(*position))
            self._tell(PointerFrame())

    def _button(self, number: int, down: bool) -> None:
        if number in WHEEL:
            if down:
                self._tell(PointerAxis(*WHEEL[number]))
                self._tell(PointerFrame())
        elif number in BUTTONS and down != (number in self._buttons):
            (self._buttons.add if down else self._buttons.discard)(number)
            self._tell(PointerButton(BUTTONS[number], down))
            self._tell(PointerFrame())
        if self.pointer is PointerState.DRAGGED_OUT and not self._buttons:
            self._leave_pointer()

    def _pointer_left(self) -> None:
        if self.keyboard is KeyboardState.FOLLOWS_POINTER:
            self._leave_keyboard()
        if self._buttons:
            self.pointer = PointerState.DRAGGED_OUT
        else:
            self._leave_pointer()

    def _leave_pointer(self) -> None:
        was_outside, self.pointer = self.pointer is PointerState.OUTSIDE, PointerState.OUTSIDE
        self._buttons.clear()
        if not was_outside:
            self._tell(PointerLeave())
            self._tell(PointerFrame())
