"""The input of one guest, merged from all its sources (evdev devices, compositor windows).

Only events that the guest's driver can process are passed on: the keys and contact numbers that it has, and positions or motions as it
has requested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import (
    BackKbdPage,
    TouchDown,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchSyn,
    TouchUp,
)

from .event_queue import EventQueue
from .features import BUTTONS, Features
from .key_repeater import AutoRepeat, KeyRepeater

__all__ = ["GuestInput", "InputSource"]

MAX_DIAMETER: Final = 0xFFFFFFFF
"""The diameters in XENKBD_MT_EV_SHAPE are u32."""


class InputSource:
    """A keyboard, pointer or touch screen that reports events. No two sources share keys or contacts."""

    def __init__(self, name: str, *, repeats: bool) -> None:
        self.name = name
        self.repeats = repeats
        """Whether it repeats keys that are held down (EV_REP)."""

    async def settle(self) -> bool:
        """Wait until the source's events up to now have been passed on. Return False if that is not known, for example because the
        compositor is gone. The events of this base class are passed on at once.
        """
        await trio.lowlevel.checkpoint()
        return True


class GuestInput:
    """The input of one connected vkbd.

    Sources call its methods, which never block: all events of one frame, then `flush`. The repetition or release of a key, and the
    motion or release of a contact, are passed on only if the guest was sent the press: otherwise the press was for another guest.
    Fractions are of the width or height, 0 to 1.
    """

    def __init__(
        self,
        page: BackKbdPage,
        features: Features,
        auto_repeat: AutoRepeat,
        notify: Callable[[], None],
        broken: Callable[[FrontendBroken], None],
    ) -> None:
        self.queue = EventQueue(page, notify, broken)
        self.features = features
        self._codes = features.codes()
        self._holders: dict[int, set[InputSource]] = {}
        """The sources that hold each key down, by the key's code."""
        self._x, self._y = features.width / 2, features.height / 2
        self._last_position: dict[InputSource, tuple[int, int]] = {}
        self._contacts: dict[tuple[InputSource, int], int] = {}
        """The guest's contact number for each source's contact."""
        self._touched: dict[InputSource, int] = {}
        """A contact of each source's unfinished frame."""
        self._repeater = KeyRepeater(auto_repeat, self.queue, self._is_down)

    # Keys and buttons

    def key(self, source: InputSource, code: int, value: int) -> None:
        """Handle a key or button event, with Linux's code and value: 1 down, 0 up, 2 repeated."""
        holders = self._holders.get(code)
        if value == 1:
            self._press(source, code, holders)
        elif holders is None or source not in holders:
            return  # its press was for another guest
        elif value == 0:
            self._release(source, code, holders)
        else:
            self.queue.repeat(code)

    def _press(self, source: InputSource, code: int, holders: set[InputSource] | None) -> None:
        if holders is not None:
            holders.add(source)
        elif code in self._codes:
            self._holders[code] = {source}
            self.queue.key(code, True)
            if not source.repeats and code not in BUTTONS:
                self._repeater.start(code)

    def _release(self, source: InputSource, code: int, holders: set[InputSource]) -> None:
        holders.discard(source)
        if not holders:
            del self._holders[code]
            self.queue.key(code, False)
            self._repeater.stop(code)

    def sync_locks(self, source: InputSource, wanted: dict[int, bool]) -> None:
        """Tap each of these lock keys whose lock in the guest, as far as it is known, differs from the wanted state."""
        for code, is_on in wanted.items():
            if code not in self._holders and (code in self.queue.locks.on) != is_on:
                self.key(source, code, 1)
                self.key(source, code, 0)

    async def repeat(self) -> None:
        """Repeat keys that are held down on sources that do not repeat them. Runs until cancelled."""
        await self._repeater.run()

    async def _is_down(self, code: int) -> bool:
        """Return whether a source holds this key down now, after its events up to now."""
        for source in tuple(self._holders.get(code, ())):
            if await source.settle() and source in self._holders.get(code, ()):
                return True
        return False

    # The pointer

    def move(self, dx: int, dy: int, wheel: int) -> None:
        """Move the pointer by pixels and the wheel by detents, positive up."""
        if not self.features.pointer:
            return
        if not self.features.absolute:
            self.queue.motion(dx, dy, -wheel)
            return
        self._x = min(max(self._x + dx, 0), self.features.width - 1)
        self._y = min(max(self._y + dy, 0), self.features.height - 1)
        self.queue.position(int(self._x), int(self._y), -wheel)

    def point(self, source: InputSource, x: float, y: float, wheel: int, *, jump: bool) -> None:
        """Move the pointer to a position given as fractions.

        `jump`: the pointer did not move there from its last position (a pen that touches again), so a guest with a relative pointer gets
        no motion.
        """
        if not self.features.pointer:
            return
        width, height = self.features.width, self.features.height
        position = _pixel(x, width), _pixel(y, height)
        if self.features.absolute:
            self._x, self._y = position
            self.queue.position(*position, -wheel)
            return
        before = position if jump else self._last_position.get(source, position)
        self._last_position[source] = position
        if position != before or wheel:
            self.queue.motion(position[0] - before[0], position[1] - before[1], -wheel)

    # The touch screen

    def touch_down(self, source: InputSource, contact: int, x: float, y: float) -> None:
        """Put a contact down at a position given as fractions. `contact` is the source's own number."""
        number = self._free_number(contact)
        if number is None or (source, contact) in self._contacts:
            return
        self._contacts[source, contact] = self._touched[source] = number
        self.queue.touch(TouchDown(number, *self._touch_pixel(x, y)))

    def touch_move(self, source: InputSource, contact: int, x: float, y: float) -> None:
        """Move a contact to a position given as fractions."""
        number = self._contacts.get((source, contact))
        if number is not None and self.queue.contacts.get(number) != (pixel := self._touch_pixel(x, y)):
            self._touched[source] = number
            self.queue.touch(TouchMotion(number, *pixel))

    def touch_shape(self, source: InputSource, contact: int, major: float, minor: float) -> None:
        """Set the diameters of a contact's ellipse, as fractions of the square root of width times height."""
        number = self._contacts.get((source, contact))
        if number is not None:
            self._touched[source] = number
            size = (self.features.touch_width * self.features.touch_height) ** 0.5
            diameters = (min(max(round(fraction * size), 0), MAX_DIAMETER) for fraction in (major, minor))
            self.queue.touch(TouchShape(number, *diameters))

    def touch_orientation(self, source: InputSource, contact: int, degrees: int) -> None:
        """Set the angle of the longer axis of a contact's ellipse, in degrees clockwise from the Y axis, -180 to 180."""
        number = self._contacts.get((source, contact))
        if number is not None:
            self._touched[source] = number
            self.queue.touch(TouchOrientation(number, min(max(degrees, -180), 180)))

    def touch_up(self, source: InputSource, contact: int) -> None:
        """Lift a contact."""
        number = self._contacts.pop((source, contact), None)
        if number is not None:
            self._touched[source] = number
            self.queue.touch(TouchUp(number))

    def touch_frame(self, source: InputSource) -> None:
        """End a frame: the source's touch events since the last one belong together."""
        number = self._touched.pop(source, None)
        if number is not None:
            self.queue.touch(TouchSyn(number))

    def _free_number(self, contact: int) -> int | None:
        """Return a number for a new contact: the source's own number if it is free. None: all the guest's numbers are in use."""
        taken = set(self._contacts.values())
        contacts = self.features.contacts
        if contact in range(contacts) and contact not in taken:
            return contact
        return next((number for number in range(contacts) if number not in taken), None)

    def _touch_pixel(self, x: float, y: float) -> tuple[int, int]:
        return _pixel(x, self.features.touch_width), _pixel(y, self.features.touch_height)

    # All sources and events

    def leave(self, source: InputSource) -> None:
        """Release the keys and contacts that a source holds down. Its further events do not go to this guest."""
        for code, holders in list(self._holders.items()):
            if source in holders:
                self._release(source, code, holders)
        for owner, contact in list(self._contacts):
            if owner is source:
                self.touch_up(source, contact)
        self.touch_frame(source)
        self._last_position.pop(source, None)

    def leave_all(self) -> None:
        """Release the keys and contacts of all sources, and flush."""
        for source in {
            *(source for holders in self._holders.values() for source in holders),
            *(source for source, _ in self._contacts),
        }:
            self.leave(source)
        self.flush()

    def release_everything(self) -> None:
        """Release every key and contact that the guest has: an earlier daemon has used the page, and may have left some down."""
        self.queue.release_everything(self._codes, self.features.contacts)
        self.flush()

    def flush(self) -> None:
        """Write the queued events for which there is room to the guest's page, and notify the guest if it needs a notification."""
        self.queue.flush()


def _pixel(fraction: float, size: int) -> int:
    """Return the pixel at a fraction of `size` pixels. Fraction 1 is the last pixel; a device axis of `size` steps hits each pixel."""
    return min(max(int(fraction * size), 0), size - 1)
