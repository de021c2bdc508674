"""What is on its way to a guest's page.

The page has room for 51 events. When the guest does not take them, what comes waits here in its order, motions that follow each other
as one. When that becomes too much, motions go first; then what has been pressed and let go again meanwhile is forgotten. What the
guest was told is down and no longer is, it is told in any case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from displbe.wire.errors import FrontendBroken
from displbe.wire.kbdif import (
    BackKbdPage,
    InEvent,
    Key,
    Motion,
    Position,
    TouchDown,
    TouchMotion,
    TouchOrientation,
    TouchShape,
    TouchSyn,
    TouchUp,
    encode_event,
    encode_key,
    encode_motion,
    encode_position,
)

__all__ = ["QUEUE", "Outbox"]

QUEUE: Final = 512
"""Events that wait for room: a second of fast typing, or of a touch screen. More than that wait only where less would leave something
down: then up to twice what that takes, and it takes at most a release of every key and two or three events for each finger.
"""


class Outbox:
    """The events for one page. `notify` is called when the guest is to be woken, `broken` when its page is."""

    def __init__(self, page: BackKbdPage, notify: Callable[[], None], broken: Callable[[FrontendBroken], None]) -> None:
        self.pressed: set[int] = set()
        """Keys that are down, by what came here."""
        self.fingers: dict[int, tuple[int, int]] = {}
        """Where the fingers are that are down."""
        self.dropped = 0
        """Events that the guest will never see."""
        self.written = 0
        self.notified = 0
        self._page = page
        self._notify = notify
        self._broken = broken
        self._room = 0
        self._queue: deque[InEvent] = deque()
        self._most = QUEUE
        """Events that may wait before some are given up."""
        self._told: set[int] = set()
        self._told_fingers: set[int] = set()

    @property
    def waiting(self) -> int:
        """Events that the page has no room for."""
        return len(self._queue)

    def key(self, code: int, pressed: bool) -> None:
        """A key goes down or up."""
        if pressed:
            self.pressed.add(code)
        else:
            self.pressed.discard(code)
        if self._is_open():
            self._write_key(code, pressed)
        else:
            self._wait(Key(pressed, code))

    def repeat(self, code: int) -> None:
        """A key is still down: of no use later."""
        if self._is_open():
            self._write_key(code, True)
        else:
            self.dropped += 1

    def motion(self, dx: int, dy: int, dz: int) -> None:
        """The pointer moves."""
        dx, dy, dz = _clamp(dx), _clamp(dy), _clamp(dz)
        if self._is_open():
            self._write(encode_motion(dx, dy, dz))
        else:
            self._wait(Motion(dx, dy, dz))

    def position(self, x: int, y: int, dz: int) -> None:
        """The pointer is here."""
        dz = _clamp(dz)
        if self._is_open():
            self._write(encode_position(x, y, dz))
        else:
            self._wait(Position(x, y, dz))

    def touch(self, event: TouchDown | TouchMotion | TouchShape | TouchOrientation | TouchUp | TouchSyn) -> None:
        """A finger's event."""
        if isinstance(event, (TouchDown, TouchMotion)):
            self.fingers[event.contact_id] = event.abs_x, event.abs_y
        elif isinstance(event, TouchUp):
            self.fingers.pop(event.contact_id, None)
        self._send(event)

    def release_everything(self, codes: Iterable[int], fingers: int) -> None:
        """Say of all keys, and of so many fingers, that they are up: nothing is known of the guest. What is up there, it ignores."""
        self._told.update(codes)
        self._told_fingers.update(range(fingers))
        self._drop_taps()

    def flush(self) -> None:
        """Let the guest see what there is room for."""
        while self._queue and self._has_room():
            self._write_event(self._queue.popleft())
        if not self._queue:
            self._most = QUEUE
        if self._page.push():
            self.notified += 1
            self._notify()

    def _send(self, event: InEvent) -> None:
        if self._is_open():
            self._write_event(event)
        else:
            self._wait(event)

    def _is_open(self) -> bool:
        """Whether an event can go into the page at once."""
        return not self._queue and (self._room > 0 or self._has_room())

    def _has_room(self) -> bool:
        if self._room == 0:
            try:
                self._room = self._page.room()
            except FrontendBroken as broken:
                self._broken(broken)
        return self._room > 0

    def _write(self, event: bytes) -> None:
        self._room -= 1
        self.written += 1
        self._page.put(event)

    def _write_key(self, code: int, pressed: bool) -> None:
        if pressed:
            self._told.add(code)
        else:
            self._told.discard(code)
        self._write(encode_key(code, pressed))

    def _write_event(self, event: InEvent) -> None:
        if isinstance(event, Key):
            self._write_key(event.keycode, bool(event.pressed))
            return
        if isinstance(event, TouchDown):
            self._told_fingers.add(event.contact_id)
        elif isinstance(event, TouchUp):
            self._told_fingers.discard(event.contact_id)
        self._write(encode_event(event))

    def _wait(self, event: InEvent) -> None:
        queue = self._queue
        last = queue[-1] if queue else None
        if isinstance(event, Motion) and isinstance(last, Motion):
            queue[-1] = _sum(last, event)
        elif isinstance(event, Position) and isinstance(last, Position):
            queue[-1] = _later(last, event)
        else:
            queue.append(event)
            if len(queue) > self._most:
                self._drop_motions()
                if len(queue) > QUEUE // 2:
                    self._drop_taps()
                self._most = max(QUEUE, 2 * len(queue))  # else this would be done for each event that comes now

    def _drop_motions(self) -> None:
        """Keep of each kind of motion only where it ends."""
        before = list(self._queue)
        self._queue.clear()
        motion, position = Motion(0, 0, 0), None
        moved: dict[tuple[type[InEvent], int], InEvent] = {}
        for event in before:
            if isinstance(event, Motion):
                motion = _sum(motion, event)
            elif isinstance(event, Position):
                position = _later(position, event) if position else event
            elif isinstance(event, (TouchMotion, TouchShape, TouchOrientation)):
                moved[type(event), event.contact_id] = event
            elif not isinstance(event, TouchSyn):
                self._queue.append(event)
                if isinstance(event, (TouchDown, TouchUp)):
                    self._queue.append(TouchSyn(event.contact_id))
                    for kind in (TouchMotion, TouchShape, TouchOrientation):
                        moved.pop((kind, event.contact_id), None)
        if motion != Motion(0, 0, 0):
            self._queue.append(motion)
        if position is not None:
            self._queue.append(position)
        self._queue.extend(moved.values())
        if moved:
            self._queue.append(TouchSyn(next(iter(moved))[1]))
        self.dropped += max(0, len(before) - len(self._queue))

    def _drop_taps(self) -> None:
        """Keep only the difference between what the guest was told and what is."""
        before = list(self._queue)
        lifted = {event.contact_id for event in before if isinstance(event, TouchUp)}
        self._queue.clear()
        self._queue.extend(Key(False, code) for code in sorted(self._told - self.pressed))
        gone = sorted(finger for finger in self._told_fingers if finger in lifted or finger not in self.fingers)
        self._queue.extend(TouchUp(finger) for finger in gone)
        if gone:
            self._queue.append(TouchSyn(gone[-1]))
        self._queue.extend(Key(True, code) for code in sorted(self.pressed - self._told))
        self._queue.extend(event for event in before if isinstance(event, (Motion, Position)))
        for finger, (x, y) in sorted(self.fingers.items()):
            down = finger not in self._told_fingers or finger in lifted
            self._queue.append(TouchDown(finger, x, y) if down else TouchMotion(finger, x, y))
            self._queue.append(TouchSyn(finger))
        self.dropped += max(0, len(before) - len(self._queue))


def _clamp(value: int) -> int:
    """An s32."""
    return max(-0x80000000, min(value, 0x7FFFFFFF))


def _sum(first: Motion, second: Motion) -> Motion:
    return Motion(
        _clamp(first.rel_x + second.rel_x), _clamp(first.rel_y + second.rel_y), _clamp(first.rel_z + second.rel_z)
    )


def _later(first: Position, second: Position) -> Position:
    return Position(second.abs_x, second.abs_y, _clamp(first.rel_z + second.rel_z))
