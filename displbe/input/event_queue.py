"""The queue of events for a guest's page.

The page holds 51 events (XENKBD_IN_RING_LEN). While the guest does not consume them, further events wait here in order; consecutive
motions are merged. When too many wait, motions are thinned out first; then presses whose release also waits are dropped. The release of
a key or contact is never dropped if its press has been written to the page.
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

from .locks import LOCK_KEYS, Locks

__all__ = ["CAPACITY", "EventQueue"]

CAPACITY: Final = 512
"""Events that may wait for room in the page: one second of fast typing or of a touch screen. More events wait only if dropping them would
leave a key or contact down. The limit is then twice the number of events that must stay, which is at most a release of each key and two
or three events for each contact.
"""


class EventQueue:
    """The events for one page. `notify` is called to notify the guest; `broken` when the guest's index in the page is impossible."""

    def __init__(self, page: BackKbdPage, notify: Callable[[], None], broken: Callable[[FrontendBroken], None]) -> None:
        self.pressed: set[int] = set()
        """Keys that are down, by the events queued so far."""
        self.contacts: dict[int, tuple[int, int]] = {}
        """Contacts that are down, by the events queued so far, and their positions."""
        self.locks = Locks()
        """The guest's Caps Lock and so on, by the events queued so far."""
        self.dropped = 0
        """The number of events that the guest will never get."""
        self.written = 0
        """Events written to the page."""
        self.notified = 0
        """Notifications sent."""
        self._page = page
        self._notify = notify
        self._broken = broken
        self._room = 0
        self._waiting: deque[InEvent] = deque()
        self._limit = CAPACITY
        """Events that may wait before some are dropped."""
        self._written_keys: set[int] = set()
        """Keys that are down, by the events written to the page."""
        self._written_contacts: set[int] = set()
        """Contacts that are down, by the events written to the page."""

    @property
    def waiting(self) -> int:
        """The number of events that wait for room in the page."""
        return len(self._waiting)

    def key(self, code: int, pressed: bool) -> None:
        """Queue a key press or release."""
        if pressed and code not in self.pressed:
            self.locks.toggle(code)
        if pressed:
            self.pressed.add(code)
        else:
            self.pressed.discard(code)
        if self._is_open():
            self._write_key(code, pressed)
        else:
            self._wait(Key(pressed, code))

    def repeat(self, code: int) -> None:
        """Repeat a key that is down. A repetition is dropped, not queued, while the guest has not taken the events before it: a guest that
        stood still would get it when the key is up.
        """
        if self._is_open() and not self._page.is_waiting():
            self._write_key(code, True)
        else:
            self.dropped += 1

    def motion(self, dx: int, dy: int, dz: int) -> None:
        """Queue a relative motion of the pointer and the wheel."""
        dx, dy, dz = _clamp(dx), _clamp(dy), _clamp(dz)
        if self._is_open():
            self._write(encode_motion(dx, dy, dz))
        else:
            self._wait(Motion(dx, dy, dz))

    def position(self, x: int, y: int, dz: int) -> None:
        """Queue a position of the pointer, and a motion of the wheel."""
        dz = _clamp(dz)
        if self._is_open():
            self._write(encode_position(x, y, dz))
        else:
            self._wait(Position(x, y, dz))

    def touch(self, event: TouchDown | TouchMotion | TouchShape | TouchOrientation | TouchUp | TouchSyn) -> None:
        """Queue an event of the touch screen."""
        if isinstance(event, (TouchDown, TouchMotion)):
            self.contacts[event.contact_id] = event.abs_x, event.abs_y
        elif isinstance(event, TouchUp):
            self.contacts.pop(event.contact_id, None)
        if self._is_open():
            self._write_event(event)
        else:
            self._wait(event)

    def release_everything(self, codes: Iterable[int], contacts: int) -> None:
        """Queue a release of each of these keys and of contacts 0 to `contacts` - 1, for a guest whose state is unknown.

        The guest ignores the release of a key that is up.
        """
        self._written_keys.update(codes)
        self._written_contacts.update(range(contacts))
        self._drop_taps()

    def flush(self) -> None:
        """Write the waiting events for which there is room, and notify the guest if it needs a notification."""
        while self._waiting and self._has_room():
            self._write_event(self._waiting.popleft())
        if not self._waiting:
            self._limit = CAPACITY
        if self._page.push():
            self.notified += 1
            self._notify()

    def _is_open(self) -> bool:
        """Whether an event can be written at once: there is room and no event waits before it."""
        return not self._waiting and (self._room > 0 or self._has_room())

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
            self._written_keys.add(code)
        else:
            self._written_keys.discard(code)
        self._write(encode_key(code, pressed))

    def _write_event(self, event: InEvent) -> None:
        if isinstance(event, Key):
            self._write_key(event.keycode, bool(event.pressed))
            return
        if isinstance(event, TouchDown):
            self._written_contacts.add(event.contact_id)
        elif isinstance(event, TouchUp):
            self._written_contacts.discard(event.contact_id)
        self._write(encode_event(event))

    def _wait(self, event: InEvent) -> None:
        waiting = self._waiting
        last = waiting[-1] if waiting else None
        if isinstance(event, Motion) and isinstance(last, Motion):
            waiting[-1] = _sum(last, event)
        elif isinstance(event, Position) and isinstance(last, Position):
            waiting[-1] = _later(last, event)
        else:
            waiting.append(event)
            if len(waiting) > self._limit:
                self._shrink()

    def _shrink(self) -> None:
        """Drop events until about half the capacity is used, if that is possible."""
        self._merge_motions()
        if len(self._waiting) > CAPACITY // 2:
            self._drop_taps()
        # Twice the number of events that had to stay. Otherwise the whole queue would be searched again for each further event.
        self._limit = max(CAPACITY, 2 * len(self._waiting))

    def _merge_motions(self) -> None:
        """Keep only the end point of each kind of motion, behind all other events."""
        before = list(self._waiting)
        self._waiting.clear()
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
                self._waiting.append(event)
                if isinstance(event, (TouchDown, TouchUp)):
                    self._waiting.append(TouchSyn(event.contact_id))
                    for kind in (TouchMotion, TouchShape, TouchOrientation):
                        moved.pop((kind, event.contact_id), None)
        if motion != Motion(0, 0, 0):
            self._waiting.append(motion)
        if position is not None:
            self._waiting.append(position)
        self._waiting.extend(moved.values())
        if moved:
            self._waiting.append(TouchSyn(next(iter(moved))[1]))
        self.dropped += max(0, len(before) - len(self._waiting))

    def _drop_taps(self) -> None:
        """Keep only the difference between the state written to the page and the present one: releases, presses, positions."""
        before = list(self._waiting)
        lifted = {event.contact_id for event in before if isinstance(event, TouchUp)}
        self._waiting.clear()
        self._waiting.extend(Key(False, code) for code in sorted(self._written_keys - self.pressed))
        gone = sorted(
            contact for contact in self._written_contacts if contact in lifted or contact not in self.contacts
        )
        self._waiting.extend(TouchUp(contact) for contact in gone)
        if gone:
            self._waiting.append(TouchSyn(gone[-1]))
        self._waiting.extend(Key(True, code) for code in sorted(self.pressed - self._written_keys))
        self._waiting.extend(event for event in before if isinstance(event, (Motion, Position)))
        for contact, (x, y) in sorted(self.contacts.items()):
            # A contact that went up and came down elsewhere is reported as two touches, not as a drag.
            is_new = contact not in self._written_contacts or contact in lifted
            self._waiting.append(TouchDown(contact, x, y) if is_new else TouchMotion(contact, x, y))
            self._waiting.append(TouchSyn(contact))
        self.dropped += max(0, len(before) - len(self._waiting))
        for code in LOCK_KEYS:
            if (before.count(Key(True, code)) - self._waiting.count(Key(True, code))) % 2:
                self.locks.toggle(code)


def _clamp(value: int) -> int:
    """Limit a value to an s32, the type of kbdif's fields."""
    return max(-0x80000000, min(value, 0x7FFFFFFF))


def _sum(first: Motion, second: Motion) -> Motion:
    return Motion(
        _clamp(first.rel_x + second.rel_x), _clamp(first.rel_y + second.rel_y), _clamp(first.rel_z + second.rel_z)
    )


def _later(first: Position, second: Position) -> Position:
    return Position(second.abs_x, second.abs_y, _clamp(first.rel_z + second.rel_z))
