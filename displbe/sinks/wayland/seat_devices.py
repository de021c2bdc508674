"""The devices of the compositor's seats. Their events go to the guest whose surface has the focus (displbe.sinks.seat)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from displbe.ops.log import SparseLog
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
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)

from .conn import Connection, Global, Proxy, words
from .cursor import SeatCursor
from .key_translator import KeyTranslator
from .keymap import read_keymap

__all__ = ["SeatDevices", "SeatTarget"]

POINTER: Final = 1
KEYBOARD: Final = 2
TOUCH: Final = 4
"""wl_seat.capability"""
CONTINUOUS: Final = 12
"""120ths of a detent for each unit of wl_pointer.axis: compositors send 10 units for a detent."""
XKB_V1: Final = 1
"""wl_keyboard.keymap_format"""

_say: Final = SparseLog(structlog.get_logger("displbe.wayland"))


def _ignored(keysym: str) -> None:
    """Log a key of a virtual keyboard that is passed on to no guest."""
    _say(
        "key ignored: the keyboard has its own keymap, and no key of a US keyboard makes this symbol",
        "the guest does not get it",
        level="info",
        symbol=keysym[:32],
    )


class SeatTarget(Protocol):
    """A guest's output, whose surface can have the focus of a seat."""

    def tell(self, event: SeatEvent) -> None:
        """Pass an event to the guest."""

    @property
    def size(self) -> tuple[int, int]:
        """The surface's size, in its own coordinates."""

    @property
    def draws_cursor(self) -> bool:
        """Whether the guest draws a cursor of its own, so that the compositor shows none over the surface."""


class SeatDevices:
    """The devices of one wl_seat. `find` returns the output that a wl_surface belongs to, or None.

    It has sixteen attributes: the three kinds of devices have little state each, and a focus is taken from all of them at once.
    """

    touch_ids: Final = itertools.count()
    """Numbers for fingers, unique among all seats."""

    def __init__(
        self, conn: Connection, announced: Global, find: Callable[[Proxy], SeatTarget | None], cursor: SeatCursor
    ) -> None:
        self._conn = conn
        self._find = find
        self._cursor = cursor
        self._seat = conn.bind(announced)
        self._pointer: Proxy = None
        self._keyboard: Proxy = None
        self._touch: Proxy = None
        self._keyboard_focus: SeatTarget | None = None
        self._keys = KeyTranslator(_ignored)
        self._sent_locks = True
        """Whether the guest that has the keyboard knows the locks, or need not know them."""
        self._pointer_focus: SeatTarget | None = None
        self._entered = 0
        """The serial number of the pointer's newest enter event."""
        self._fingers: dict[int, tuple[int, SeatTarget]] = {}
        """The compositor's number of a finger that is down -> displbe's number, and the output that the finger touched first."""
        self._wheel = [0.0, 0.0]
        """The rotation of the axes since the last frame, in 120ths of a detent: vertical, horizontal, with Wayland's signs."""
        self._precise = [False, False]
        """Whether an exact value of the axis has come in this frame. The less exact `axis` event is ignored then."""
        conn.on(self._seat, "capabilities", self._on_capabilities)

    @property
    def proxy(self) -> Proxy:
        """The wl_seat."""
        return self._seat

    def close(self) -> None:
        """Take the focus from all outputs, and release the devices: the seat or the connection is gone."""
        self._remove_keyboard()
        self._remove_pointer()
        self._on_touch_cancel()
        self._conn.destroy(self._touch, self._seat)

    def leave(self, target: SeatTarget) -> None:
        """Take the focus from an output whose surface is about to be destroyed."""
        if self._keyboard_focus is target:
            self._leave_keyboard()
        if self._pointer_focus is target:
            self._pointer_focus = None
            target.tell(PointerLeave())
        if any(touched is target for _, touched in self._fingers.values()):
            self._fingers = {number: down for number, down in self._fingers.items() if down[1] is not target}
            target.tell(TouchCancel())

    def _on_capabilities(self, capabilities: int) -> None:
        conn, seat = self._conn, self._seat
        if capabilities & POINTER and self._pointer is None:
            self._pointer = conn.keep_child(seat, seat.get_pointer())
            self._follow_pointer(self._pointer)
        elif not capabilities & POINTER:
            self._remove_pointer()
        if capabilities & KEYBOARD and self._keyboard is None:
            self._keyboard = conn.keep_child(seat, seat.get_keyboard())
            self._follow_keyboard(self._keyboard)
        elif not capabilities & KEYBOARD:
            self._remove_keyboard()
        if capabilities & TOUCH and self._touch is None:
            self._touch = conn.keep_child(seat, seat.get_touch())
            self._follow_touch(self._touch)
        elif not capabilities & TOUCH and self._touch is not None:
            self._on_touch_cancel()
            conn.destroy(self._touch)
            self._touch = None

    # Keyboard

    def _follow_keyboard(self, keyboard: Proxy) -> None:
        on = self._conn.on
        on(keyboard, "keymap", self._on_keymap)
        on(keyboard, "modifiers", self._on_modifiers)
        on(keyboard, "enter", self._on_keyboard_enter)
        on(keyboard, "leave", lambda serial, surface: self._leave_keyboard())
        on(keyboard, "key", self._on_key)

    def _on_keymap(self, layout: int, fd: int, size: int) -> None:
        try:
            keymap = read_keymap(fd, size) if layout == XKB_V1 else None
        except ValueError as error:
            _say("the compositor's keymap cannot be read: key codes are passed on unchanged", str(error), level="info")
            keymap = None
        finally:
            os.close(fd)
        self._tell_keys(self._keys.set_keymap(keymap))

    def _on_modifiers(self, serial: int, depressed: int, latched: int, locked: int, group: int) -> None:
        self._keys.set_modifiers(depressed | latched, locked, group)

    def _tell_keys(self, events: Iterable[tuple[int, bool]]) -> None:
        for code, down in events:
            if self._keyboard_focus is not None:
                self._keyboard_focus.tell(KeyboardKey(code, down))

    def _on_keyboard_enter(self, serial: int, surface: Proxy, keys: bytes) -> None:
        self._leave_keyboard()
        self._keyboard_focus = self._find(surface)
        if self._keyboard_focus is not None:
            down = words(keys)
            self._sent_locks = not LOCK_KEYS.isdisjoint(down)
            self._keyboard_focus.tell(KeyboardEnter(down))

    def _leave_keyboard(self) -> None:
        target, self._keyboard_focus = self._keyboard_focus, None
        self._keys.forget()
        if target is not None:
            target.tell(KeyboardLeave())

    def _remove_keyboard(self) -> None:
        self._leave_keyboard()
        self._conn.destroy(self._keyboard)
        self._keyboard = None

    def _on_key(self, serial: int, time: int, code: int, state: int) -> None:
        if self._keyboard_focus is not None and state in (0, 1):  # 2 is a repetition, since version 10
            if state and not self._sent_locks and (locks := self._keys.locks) is not None:
                self._sent_locks = True
                self._keyboard_focus.tell(KeyboardLocks(*locks))
            self._tell_keys(self._keys.key(code, bool(state)))

    def tell_locks(self, target: SeatTarget) -> None:
        """Tell an output's guest the locks again before the next key, if it has the keyboard: another listener may have come."""
        if self._keyboard_focus is target:
            self._sent_locks = False

    # Pointer

    def _follow_pointer(self, pointer: Proxy) -> None:
        on, version = self._conn.on, self._conn.version(pointer)
        on(pointer, "enter", self._on_pointer_enter)
        on(pointer, "leave", lambda serial, surface: self._leave_pointer())
        on(pointer, "motion", self._on_motion)
        on(pointer, "button", self._on_button)
        on(pointer, "axis", self._on_axis)
        if version >= 5:
            on(pointer, "frame", self._on_pointer_frame)
        if version >= 8:
            on(pointer, "axis_value120", self._on_axis_exact)
        elif version >= 5:
            on(pointer, "axis_discrete", lambda axis, steps: self._on_axis_exact(axis, 120 * steps))

    def _on_pointer_enter(self, serial: int, surface: Proxy, x: float, y: float) -> None:
        self._leave_pointer()
        self._pointer_focus = self._find(surface)
        if self._pointer_focus is not None:
            self._entered = serial
            self.update_cursor(self._pointer_focus)
            self._pointer_focus.tell(PointerEnter(x, y, *self._pointer_focus.size))
            self._frame_without_frames()

    def update_cursor(self, target: SeatTarget) -> None:
        """Show or hide the cursor if the pointer is over this output's surface."""
        if self._pointer_focus is target:
            if target.draws_cursor:
                self._cursor.hide(self._pointer, self._entered)
            else:
                self._cursor.show(self._pointer, self._entered)

    def _leave_pointer(self) -> None:
        target, self._pointer_focus = self._pointer_focus, None
        self._wheel, self._precise = [0.0, 0.0], [False, False]
        if target is not None:
            target.tell(PointerLeave())

    def _remove_pointer(self) -> None:
        self._leave_pointer()
        self._conn.destroy(self._pointer)
        self._cursor.close()
        self._pointer = None

    def _on_motion(self, time: int, x: float, y: float) -> None:
        if self._pointer_focus is not None:
            self._pointer_focus.tell(PointerMotion(x, y, *self._pointer_focus.size))
            self._frame_without_frames()

    def _on_button(self, serial: int, time: int, code: int, state: int) -> None:
        if self._pointer_focus is not None:
            self._pointer_focus.tell(PointerButton(code, bool(state)))
            self._frame_without_frames()

    def _on_axis(self, time: int, axis: int, value: float) -> None:
        if axis in (0, 1) and not self._precise[axis]:
            self._wheel[axis] += value * CONTINUOUS
        self._frame_without_frames()

    def _on_axis_exact(self, axis: int, value: int) -> None:
        # This event comes in the same frame as `axis`, before or after it, and gives the same value more exactly.
        if axis in (0, 1):
            if not self._precise[axis]:
                self._precise[axis], self._wheel[axis] = True, 0.0
            self._wheel[axis] += value

    def _on_pointer_frame(self) -> None:
        whole = [int(turned) for turned in self._wheel]
        if self._pointer_focus is not None:
            if any(whole):
                self._pointer_focus.tell(PointerAxis(-whole[0], whole[1]))
            self._pointer_focus.tell(PointerFrame())
        # The remainder below a 120th is kept for the next frame.
        self._wheel = [turned - sent for turned, sent in zip(self._wheel, whole, strict=True)]
        self._precise = [False, False]

    def _frame_without_frames(self) -> None:
        if self._conn.version(self._pointer) < 5:
            self._on_pointer_frame()

    # Touch

    def _follow_touch(self, touch: Proxy) -> None:
        on = self._conn.on
        on(touch, "down", self._on_touch_down)
        on(touch, "up", self._on_touch_up)
        on(touch, "motion", self._on_touch_motion)
        on(touch, "frame", self._on_touch_frame)
        on(touch, "cancel", self._on_touch_cancel)
        if self._conn.version(touch) >= 6:
            on(touch, "shape", self._on_touch_shape)
            on(touch, "orientation", self._on_touch_orientation)

    def _on_touch_down(self, serial: int, time: int, surface: Proxy, finger: int, x: float, y: float) -> None:
        self._on_touch_up(serial, time, finger)
        touched = self._find(surface)
        if touched is not None:
            name = next(self.touch_ids)
            self._fingers[finger] = (name, touched)
            touched.tell(TouchDown(name, x, y, *touched.size))

    def _on_touch_up(self, serial: int, time: int, finger: int) -> None:
        name, touched = self._fingers.pop(finger, (0, None))
        if touched is not None:
            touched.tell(TouchUp(name))
            touched.tell(TouchFrame())

    def _on_touch_motion(self, time: int, finger: int, x: float, y: float) -> None:
        name, touched = self._fingers.get(finger, (0, None))
        if touched is not None:
            touched.tell(TouchMotion(name, x, y, *touched.size))

    def _on_touch_shape(self, finger: int, major: float, minor: float) -> None:
        name, touched = self._fingers.get(finger, (0, None))
        if touched is not None:
            touched.tell(TouchShape(name, major, minor, *touched.size))

    def _on_touch_orientation(self, finger: int, degrees: float) -> None:
        name, touched = self._fingers.get(finger, (0, None))
        if touched is not None:
            touched.tell(TouchOrientation(name, degrees))

    def _touched(self) -> list[SeatTarget]:
        """Return the outputs with fingers on them, each once."""
        found: list[SeatTarget] = []
        for _, touched in self._fingers.values():
            if touched not in found:
                found.append(touched)
        return found

    def _on_touch_frame(self) -> None:
        for touched in self._touched():
            touched.tell(TouchFrame())

    def _on_touch_cancel(self) -> None:
        touched, self._fingers = self._touched(), {}
        for target in touched:
            target.tell(TouchCancel())
