"""What the sources say, as one guest is told it: the end that all sources of a guest share (sources.base.Receiver).

Only keys that the guest's driver has, only fingers that it has numbers for, only positions or only motions, as it has asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
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

from .features import BUTTONS, Features
from .outbox import Outbox
from .sources.base import Source

__all__ = ["Feed", "Repeats"]

MAX_DIAMETER: Final = 0xFFFFFFFF
"""A finger's diameters are u32."""


class Repeats(msgspec.Struct, frozen=True):
    """How keys repeat whose source does not do it: seconds until the first time, and between two; `period` 0: never."""

    delay: float = 0.5
    period: float = 0.04


class Feed:
    """The input of one connected guest."""

    def __init__(
        self,
        page: BackKbdPage,
        features: Features,
        repeats: Repeats,
        notify: Callable[[], None],
        broken: Callable[[FrontendBroken], None],
    ) -> None:
        self.outbox = Outbox(page, notify, broken)
        self.features = features
        self._codes = features.codes()
        self._repeats = repeats
        self._holders: dict[int, set[Source]] = {}
        """Of each key that is down: who holds it."""
        self._x, self._y = features.width / 2, features.height / 2
        self._last: dict[Source, tuple[int, int]] = {}
        self._fingers: dict[tuple[Source, int], int] = {}
        """The guest's number of each source's finger."""
        self._touched: dict[Source, int] = {}
        """A finger of each source of which something was said since its last frame."""
        self._repeating: int | None = None
        self._repeat_at = 0.0
        self._pressed = trio.Event()

    # Keys and buttons

    def key(self, source: Source, code: int, value: int) -> None:
        """Receiver.key"""
        holders = self._holders.get(code)
        if value == 1:
            self._press(source, code, holders)
        elif holders is None or source not in holders:
            return  # it went down for somebody else
        elif value == 0:
            self._let_go(source, code, holders)
        else:
            self.outbox.repeat(code)

    def _press(self, source: Source, code: int, holders: set[Source] | None) -> None:
        if holders is not None:
            holders.add(source)
        elif code in self._codes:
            self._holders[code] = {source}
            self.outbox.key(code, True)
            if not source.repeats and code not in BUTTONS and self._repeats.period:
                self._repeating = code
                self._repeat_at = trio.current_time() + self._repeats.delay
                self._pressed.set()

    def _let_go(self, source: Source, code: int, holders: set[Source]) -> None:
        holders.discard(source)
        if not holders:
            del self._holders[code]
            self.outbox.key(code, False)
            if code == self._repeating:
                self._repeating = None

    async def repeat(self) -> None:
        """Repeat what is held, for ever."""
        while True:
            if self._repeating is None:
                self._pressed = trio.Event()
                await self._pressed.wait()
            await trio.sleep_until(self._repeat_at)
            if self._repeating is not None and trio.current_time() >= self._repeat_at:
                self._repeat_at += self._repeats.period
                self.outbox.repeat(self._repeating)
                self.outbox.flush()

    # The pointer

    def move(self, dx: int, dy: int, wheel: int) -> None:
        """Receiver.move"""
        if not self.features.pointer:
            return
        if not self.features.absolute:
            self.outbox.motion(dx, dy, -wheel)
            return
        self._x = min(max(self._x + dx, 0), self.features.width - 1)
        self._y = min(max(self._y + dy, 0), self.features.height - 1)
        self.outbox.position(int(self._x), int(self._y), -wheel)

    def point(self, source: Source, x: float, y: float, wheel: int, *, jump: bool) -> None:
        """Receiver.point"""
        if not self.features.pointer:
            return
        width, height = self.features.width, self.features.height
        at = _pixel(x, width), _pixel(y, height)
        if self.features.absolute:
            self._x, self._y = at
            self.outbox.position(*at, -wheel)
            return
        before = at if jump else self._last.get(source, at)
        self._last[source] = at
        if at != before or wheel:
            self.outbox.motion(at[0] - before[0], at[1] - before[1], -wheel)

    # Fingers

    def touch_down(self, source: Source, finger: int, x: float, y: float) -> None:
        """Receiver.touch_down"""
        number = self._number(finger)
        if number is None or (source, finger) in self._fingers:
            return
        self._fingers[source, finger] = self._touched[source] = number
        self.outbox.touch(TouchDown(number, *self._spot(x, y)))

    def touch_move(self, source: Source, finger: int, x: float, y: float) -> None:
        """Receiver.touch_move"""
        number = self._fingers.get((source, finger))
        if number is not None and self.outbox.fingers.get(number) != (spot := self._spot(x, y)):
            self._touched[source] = number
            self.outbox.touch(TouchMotion(number, *spot))

    def touch_shape(self, source: Source, finger: int, major: float, minor: float) -> None:
        """Receiver.touch_shape"""
        number = self._fingers.get((source, finger))
        if number is not None:
            self._touched[source] = number
            size = (self.features.touch_width * self.features.touch_height) ** 0.5
            diameters = (min(max(round(fraction * size), 0), MAX_DIAMETER) for fraction in (major, minor))
            self.outbox.touch(TouchShape(number, *diameters))

    def touch_orientation(self, source: Source, finger: int, degrees: int) -> None:
        """Receiver.touch_orientation"""
        number = self._fingers.get((source, finger))
        if number is not None:
            self._touched[source] = number
            self.outbox.touch(TouchOrientation(number, min(max(degrees, -180), 180)))

    def touch_up(self, source: Source, finger: int) -> None:
        """Receiver.touch_up"""
        number = self._fingers.pop((source, finger), None)
        if number is not None:
            self._touched[source] = number
            self.outbox.touch(TouchUp(number))

    def touch_frame(self, source: Source) -> None:
        """Receiver.touch_frame"""
        number = self._touched.pop(source, None)
        if number is not None:
            self.outbox.touch(TouchSyn(number))

    def _number(self, finger: int) -> int | None:
        """A number for a finger that comes down: its own where that is free. None: the guest has no more."""
        taken = set(self._fingers.values())
        contacts = self.features.contacts
        if finger in range(contacts) and finger not in taken:
            return finger
        return next((number for number in range(contacts) if number not in taken), None)

    def _spot(self, x: float, y: float) -> tuple[int, int]:
        return _pixel(x, self.features.touch_width), _pixel(y, self.features.touch_height)

    # All

    def leave(self, source: Source) -> None:
        """Receiver.leave"""
        for code, holders in list(self._holders.items()):
            if source in holders:
                self._let_go(source, code, holders)
        for owner, finger in list(self._fingers):
            if owner is source:
                self.touch_up(source, finger)
        self.touch_frame(source)
        self._last.pop(source, None)

    def leave_all(self) -> None:
        """No source says anything any more."""
        for source in {
            *(source for holders in self._holders.values() for source in holders),
            *(source for source, _ in self._fingers),
        }:
            self.leave(source)
        self.flush()

    def release_everything(self) -> None:
        """Whatever may be down, of which nothing is known here: another daemon used the page before."""
        self.outbox.release_everything(self._codes, self.features.contacts)
        self.flush()

    def flush(self) -> None:
        """Receiver.flush"""
        self.outbox.flush()


def _pixel(fraction: float, size: int) -> int:
    """Both ends of a range are ends of the screen, and a range of `size` steps has a pixel for each."""
    return min(max(int(fraction * size), 0), size - 1)
