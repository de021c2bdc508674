"""The compositor's seats: who has the keyboard, the pointer and the touches is told what they do (displbe.sinks.seat)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol

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
    TouchCancel,
    TouchDown,
    TouchFrame,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchUp,
)

from .conn import Connection, Global, Proxy

__all__ = ["SeatDevices", "Surface"]

POINTER: Final = 1
KEYBOARD: Final = 2
TOUCH: Final = 4
"""wl_seat.capability"""
CONTINUOUS: Final = 12
"""120ths of a detent for a unit of wl_pointer.axis: compositors send 10 units for a detent."""
_KEY: Final = Struct("=I")


class Surface(Protocol):
    """A guest's surface."""

    def tell(self, event: SeatEvent) -> None:
        """It is sent this."""

    @property
    def size(self) -> tuple[int, int]:
        """Its size in its own coordinates."""


class SeatDevices:
    """The devices of one wl_seat. `find` gives the surface of a proxy."""

    touches: Final = itertools.count()

    def __init__(self, conn: Connection, there: Global, find: Callable[[Proxy], Surface | None]) -> None:
        self._conn = conn
        self._find = find
        self._seat = conn.bind(there)
        self._pointer: Proxy = None
        self._keyboard: Proxy = None
        self._touch: Proxy = None
        self._typing: Surface | None = None
        self._pointed: Surface | None = None
        self._fingers: dict[int, tuple[int, Surface]] = {}
        """Its own number of each finger that is down: what we call it, and where it came down."""
        self._wheel = [0.0, 0.0]
        """What the axes have turned since the last frame, in 120ths: vertical, horizontal, both as Wayland counts them."""
        self._precise = [False, False]
        conn.on(self._seat, "capabilities", self._on_capabilities)

    def close(self) -> None:
        """The seat has gone, or the connection."""
        self._lose_keyboard()
        self._lose_pointer()
        self._on_touch_cancel()
        self._conn.destroy(self._touch, self._seat)

    def forget(self, surface: Surface) -> None:
        """A surface goes: it has no focus any more."""
        if self._typing is surface:
            self._typing = None
            surface.tell(KeyboardLeave())
        if self._pointed is surface:
            self._pointed = None
            surface.tell(PointerLeave())
        if any(on is surface for _, on in self._fingers.values()):
            self._fingers = {number: down for number, down in self._fingers.items() if down[1] is not surface}
            surface.tell(TouchCancel())

    def _on_capabilities(self, capabilities: int) -> None:
        conn, seat = self._conn, self._seat
        if capabilities & POINTER and self._pointer is None:
            self._pointer = conn.made(seat, seat.get_pointer())
            self._hear_pointer(self._pointer)
        elif not capabilities & POINTER:
            self._lose_pointer()
        if capabilities & KEYBOARD and self._keyboard is None:
            self._keyboard = conn.made(seat, seat.get_keyboard())
            self._hear_keyboard(self._keyboard)
        elif not capabilities & KEYBOARD:
            self._lose_keyboard()
        if capabilities & TOUCH and self._touch is None:
            self._touch = conn.made(seat, seat.get_touch())
            self._hear_touch(self._touch)
        elif not capabilities & TOUCH and self._touch is not None:
            self._on_touch_cancel()
            conn.destroy(self._touch)
            self._touch = None

    # Keyboard

    def _hear_keyboard(self, keyboard: Proxy) -> None:
        on = self._conn.on
        on(keyboard, "keymap", lambda layout, fd, size: os.close(fd))  # guests have their own
        on(keyboard, "enter", self._on_keyboard_enter)
        on(keyboard, "leave", lambda serial, surface: self._leave_keyboard())
        on(keyboard, "key", self._on_key)

    def _on_keyboard_enter(self, serial: int, surface: Proxy, keys: bytes) -> None:
        self._leave_keyboard()
        self._typing = self._find(surface)
        if self._typing is not None:
            self._typing.tell(KeyboardEnter(tuple(code for (code,) in _KEY.iter_unpack(bytes(keys)))))

    def _leave_keyboard(self) -> None:
        surface, self._typing = self._typing, None
        if surface is not None:
            surface.tell(KeyboardLeave())

    def _lose_keyboard(self) -> None:
        self._leave_keyboard()
        self._conn.destroy(self._keyboard)
        self._keyboard = None

    def _on_key(self, serial: int, time: int, code: int, state: int) -> None:
        if self._typing is not None and state in (0, 1):  # 2, since version 10: repeated
            self._typing.tell(KeyboardKey(code, bool(state)))

    # Pointer

    def _hear_pointer(self, pointer: Proxy) -> None:
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
        self._pointed = self._find(surface)
        if self._pointed is not None:
            self._pointer.set_cursor(serial, None, 0, 0)  # the guest draws its own
            self._pointed.tell(PointerEnter(x, y, *self._pointed.size))
            self._frame_without_frames()

    def _leave_pointer(self) -> None:
        surface, self._pointed = self._pointed, None
        self._wheel, self._precise = [0.0, 0.0], [False, False]
        if surface is not None:
            surface.tell(PointerLeave())

    def _lose_pointer(self) -> None:
        self._leave_pointer()
        self._conn.destroy(self._pointer)
        self._pointer = None

    def _on_motion(self, time: int, x: float, y: float) -> None:
        if self._pointed is not None:
            self._pointed.tell(PointerMotion(x, y, *self._pointed.size))
            self._frame_without_frames()

    def _on_button(self, serial: int, time: int, code: int, state: int) -> None:
        if self._pointed is not None:
            self._pointed.tell(PointerButton(code, bool(state)))
            self._frame_without_frames()

    def _on_axis(self, time: int, axis: int, value: float) -> None:
        if axis in (0, 1) and not self._precise[axis]:
            self._wheel[axis] += value * CONTINUOUS
        self._frame_without_frames()

    def _on_axis_exact(self, axis: int, value: int) -> None:
        # It comes beside `axis` in the same frame, before it or after, and says the same more exactly.
        if axis in (0, 1):
            if not self._precise[axis]:
                self._precise[axis], self._wheel[axis] = True, 0.0
            self._wheel[axis] += value

    def _on_pointer_frame(self) -> None:
        whole = [int(turned) for turned in self._wheel]
        if self._pointed is not None:
            if any(whole):
                self._pointed.tell(PointerAxis(-whole[0], whole[1]))
            self._pointed.tell(PointerFrame())
        # What is less than a 120th is kept for the next frame.
        self._wheel = [turned - told for turned, told in zip(self._wheel, whole, strict=True)]
        self._precise = [False, False]

    def _frame_without_frames(self) -> None:
        if self._conn.version(self._pointer) < 5:
            self._on_pointer_frame()

    # Touch

    def _hear_touch(self, touch: Proxy) -> None:
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
            name = next(self.touches)
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

    def _touched(self) -> list[Surface]:
        found: list[Surface] = []
        for _, touched in self._fingers.values():
            if touched not in found:
                found.append(touched)
        return found

    def _on_touch_frame(self) -> None:
        for touched in self._touched():
            touched.tell(TouchFrame())

    def _on_touch_cancel(self) -> None:
        touched, self._fingers = self._touched(), {}
        for surface in touched:
            surface.tell(TouchCancel())
