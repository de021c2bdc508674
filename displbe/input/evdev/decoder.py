"""Decodes the events of one evdev device into a guest's input (Documentation/input/event-codes.rst of Linux).

A frame consists of the events up to SYN_REPORT, which happened at the same time. It is passed on at its end: first the pointer's
position, then the buttons, so that a button goes down at the new position. Keys, axes and contacts are tracked even while no guest gets
the events, since the kernel reports only changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from displbe.input.bindings import Role
from displbe.input.event_codes import (
    BTN_LEFT,
    BTN_MISC,
    BTN_TASK,
    BTN_TOUCH,
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SYN,
    KEY_OK,
    SYN_DROPPED,
    SYN_MT_REPORT,
    SYN_REPORT,
)
from displbe.input.guest_input import GuestInput, InputSource
from displbe.sinks.turn import Turn

from .capabilities import Capabilities, InputEvent, Snapshot
from .pointer import PointerDecoder
from .touch import touch_decoder

__all__ = ["Decoder"]


class Decoder:
    """The decoder of one device. `snapshot` is the device's initial state; keys that are down in it were not pressed for a guest.

    `turn` returns how the device is mounted: positions and motions are passed on as they are on an upright screen.
    """

    def __init__(
        self,
        source: InputSource,
        capabilities: Capabilities,
        snapshot: Snapshot,
        turn: Callable[[], Turn] = lambda: Turn.NONE,
    ) -> None:
        self._source = source
        self._down = set(snapshot.keys)
        self._keys: list[tuple[int, int]] = []
        """Presses and releases of the unfinished frame: code and value, 1 or 0."""
        self._repeated: int | None = None
        """The key that the device has repeated, if no key was pressed or released since; None: no repetition is to be passed on."""
        self._pointer = PointerDecoder(source, capabilities, snapshot, turn)
        self._touch = touch_decoder(source, capabilities, snapshot, turn)
        self._merges_motions = not capabilities.abs_axes
        """Whether motions that are read together are passed on as one. Positions are not: a pen draws a line through each of them."""
        self._touch_is_left = BTN_LEFT not in capabilities.keys and not capabilities.is_touchpad
        """Whether BTN_TOUCH is passed on as the left button: for a touch screen or pen without a left button."""

    def decode(self, events: Iterable[InputEvent], guest_input: GuestInput | None, roles: frozenset[Role]) -> bool:
        """Pass on events to a guest in the given roles. `guest_input` None: no guest gets them.

        Return True when the kernel has dropped events (SYN_DROPPED). The rest of the events is ignored, and the caller must call `resync`.
        """
        lost = pending = False
        for kind, code, value in events:
            if kind == EV_SYN:
                if code == SYN_REPORT:
                    pending = self._merges_motions and not self._keys
                    if not pending:
                        self._end_frame(guest_input, roles)
                elif code == SYN_DROPPED:
                    lost = True
                    break
                elif code == SYN_MT_REPORT:
                    self._touch.end_contact()
            elif kind == EV_KEY and value == 2:
                self._repeated = code
            elif kind == EV_KEY:
                self._keys.append((code, value))
                self._repeated = (
                    None  # the kernel stops repeating as well (input_handle_event in drivers/input/input.c)
                )
            elif kind == EV_REL:
                self._pointer.relative(code, value)
            elif kind == EV_ABS:
                self._pointer.absolute(code, value)
                self._touch.absolute(code, value)
        if pending and not lost:
            self._end_frame(guest_input, roles)
        if guest_input is not None:
            guest_input.flush()
        return lost

    def repeat(self, guest_input: GuestInput | None, roles: frozenset[Role]) -> None:
        """Pass on the device's repetition of a key, at most one. Call this when no event is left to read: repetitions that were buffered
        while displbe stood still are not made up for, and none is passed on for a key that has been released meanwhile.
        """
        code, self._repeated = self._repeated, None
        if code is not None and guest_input is not None:
            self._pass_key(code, 2, guest_input, roles)
            guest_input.flush()

    def resync(self, snapshot: Snapshot, guest_input: GuestInput | None, roles: frozenset[Role]) -> None:
        """Pass on the difference between the tracked state and the device's present state, after events have been lost."""
        self._keys.clear()
        self._repeated = None
        for code in sorted(self._down - snapshot.keys):
            self._keys.append((code, 0))
        for code in sorted(snapshot.keys - self._down):
            self._keys.append((code, 1))
        self._pointer.resync(snapshot)
        self._touch.resync(snapshot)
        self._end_frame(guest_input, roles)
        if guest_input is not None:
            guest_input.flush()

    def _end_frame(self, guest_input: GuestInput | None, roles: frozenset[Role]) -> None:
        keys = self._keys
        for code, value in keys:
            if value:
                self._down.add(code)
            else:
                self._down.discard(code)
            if code == BTN_TOUCH:
                self._touch.touch_button(bool(value))
            self._pointer.button(code, bool(value))
        self._pointer.end_frame(guest_input if Role.POINTER in roles else None)
        if guest_input is not None:
            for code, value in keys:
                self._pass_key(code, value, guest_input, roles)
        self._touch.end_frame(guest_input if Role.TOUCH in roles else None)
        self._keys.clear()

    def _pass_key(self, code: int, value: int, guest_input: GuestInput, roles: frozenset[Role]) -> None:
        if code < BTN_MISC or code >= KEY_OK:
            if Role.KEYBOARD in roles:
                guest_input.key(self._source, code, value)
        elif Role.POINTER in roles:
            if BTN_LEFT <= code <= BTN_TASK:
                guest_input.key(self._source, code, value)
            elif code == BTN_TOUCH and self._touch_is_left and Role.TOUCH not in roles:
                guest_input.key(self._source, BTN_LEFT, value)
