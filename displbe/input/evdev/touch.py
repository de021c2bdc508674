"""Decodes a device's touch events, in each of the forms that Linux has for them (multi-touch-protocol.rst, event-codes.rst)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from displbe.input.event_codes import (
    ABS_MT_ORIENTATION,
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    BTN_TOUCH,
)
from displbe.input.guest_input import GuestInput, InputSource
from displbe.sinks.turn import Turn

from .capabilities import SLOT_FIELDS, AbsAxis, Capabilities, Slot, Snapshot

__all__ = ["TouchDecoder", "touch_decoder"]


class TouchDecoder:
    """Collects the contacts of a frame, and passes on the changes at its end. This base class is for a device without contacts.

    `turn` returns how the touch screen is mounted.
    """

    def __init__(self, source: InputSource, capabilities: Capabilities, turn: Callable[[], Turn]) -> None:
        self._source = source
        self._turn = turn
        axes = capabilities.abs_axes
        self._reported: dict[int, Slot] = {}
        """Copies of the contacts at the end of the last frame, by number."""
        none = AbsAxis(0, 0)
        self._x_axis = axes.get(ABS_MT_POSITION_X) or axes.get(ABS_X) or none
        self._y_axis = axes.get(ABS_MT_POSITION_Y) or axes.get(ABS_Y) or none
        spans = [axis.maximum - axis.minimum + 1 for axis in (self._x_axis, self._y_axis)]
        self._size = max(1.0, abs(spans[0] * spans[1]) ** 0.5)
        """The square root of the touch area, in the device's units. Diameters are fractions of it."""
        orientation = axes.get(ABS_MT_ORIENTATION)
        self._quarter_turn = orientation.maximum if orientation is not None else 0
        """The value of ABS_MT_ORIENTATION that is 90 degrees; 0: the device does not report orientation."""

    def absolute(self, code: int, value: int) -> None:
        """Handle an event of type EV_ABS."""

    def end_contact(self) -> None:
        """Handle SYN_MT_REPORT."""

    def touch_button(self, down: bool) -> None:
        """Handle BTN_TOUCH."""

    def resync(self, snapshot: Snapshot) -> None:
        """Discard the frame, and continue from the device's present state."""

    def end_frame(self, guest_input: GuestInput | None) -> None:
        """Handle SYN_REPORT: pass the frame on. None: no guest gets it."""

    def _report(self, contacts: dict[int, Slot], guest_input: GuestInput | None) -> None:
        """Pass on the differences between these contacts and those of the last frame."""
        before = self._reported
        self._reported = {number: msgspec.structs.replace(slot) for number, slot in contacts.items()}
        if guest_input is None:
            return
        source, turn = self._source, self._turn()
        lifted = [number for number, slot in before.items() if _is_another(contacts.get(number), slot)]
        for number in lifted:
            guest_input.touch_up(source, number)
        if any(number in contacts for number in lifted):
            guest_input.touch_frame(source)  # a contact that goes up and a new one with the same number take two frames
        for number, slot in contacts.items():
            old = before.get(number)
            x, y = turn.upright(self._x_axis.fraction(slot.x), self._y_axis.fraction(slot.y))
            is_new = old is None or number in lifted
            if old is None or number in lifted:
                guest_input.touch_down(source, number, x, y)
                old = Slot(x=slot.x, y=slot.y)
            elif (old.x, old.y) != (slot.x, slot.y):
                guest_input.touch_move(source, number, x, y)
            if (old.major, old.minor) != (slot.major, slot.minor):
                guest_input.touch_shape(source, number, slot.major / self._size, slot.minor / self._size)
            # A contact is upright at first for the guest; on a turned screen that is another direction for the device.
            if self._quarter_turn and (old.orientation != slot.orientation or (is_new and turn is not Turn.NONE)):
                degrees = round(slot.orientation * 90 / self._quarter_turn) + turn.value
                guest_input.touch_orientation(source, number, degrees if degrees <= 180 else degrees - 360)
        guest_input.touch_frame(source)


def _is_another(now: Slot | None, before: Slot) -> bool:
    """Return whether a contact has been lifted, even if another contact has its number now."""
    return now is None or now.tracking != before.tracking


class _SlottedContacts(TouchDecoder):
    """Multi-touch type B: the device numbers its contacts by slots, and reports changes."""

    def __init__(
        self, source: InputSource, capabilities: Capabilities, snapshot: Snapshot, turn: Callable[[], Turn]
    ) -> None:
        super().__init__(source, capabilities, turn)
        self._slots = [Slot() for _ in range(capabilities.slots)]
        self._current = 0
        self._changed = False
        self.resync(snapshot)
        self.end_frame(None)

    def absolute(self, code: int, value: int) -> None:
        if code == ABS_MT_SLOT:
            self._current = value
        elif (field := SLOT_FIELDS.get(code)) is not None and 0 <= self._current < len(self._slots):
            setattr(self._slots[self._current], field, value)
            self._changed = True

    def resync(self, snapshot: Snapshot) -> None:
        self._changed = True
        for mine, theirs in zip(self._slots, snapshot.slots, strict=False):
            for field in Slot.__struct_fields__:
                setattr(mine, field, getattr(theirs, field))
        self._current = snapshot.axes.get(ABS_MT_SLOT, self._current)

    def end_frame(self, guest_input: GuestInput | None) -> None:
        if self._changed:
            contacts = {number: slot for number, slot in enumerate(self._slots) if slot.tracking >= 0}
            self._report(contacts, guest_input)
        self._changed = False


class _AnonymousContacts(TouchDecoder):
    """Multi-touch type A: each frame reports all contacts, one after the other, with or without tracking IDs."""

    def __init__(self, source: InputSource, capabilities: Capabilities, turn: Callable[[], Turn]) -> None:
        super().__init__(source, capabilities, turn)
        self._contact: Slot | None = None
        """The contact that is being reported."""
        self._frame: list[Slot] = []
        self._is_touch_frame = False
        """Whether the frame reports contacts, or reports that there are none. A frame may have only other events, such as keys."""
        self._has_tracking_ids = ABS_MT_TRACKING_ID in capabilities.abs_axes

    def absolute(self, code: int, value: int) -> None:
        field = SLOT_FIELDS.get(code)
        if field is not None:
            self._contact = self._contact or Slot()
            setattr(self._contact, field, value)

    def end_contact(self) -> None:
        if self._contact is not None:
            self._frame.append(self._contact)
        self._contact = None
        self._is_touch_frame = True

    def touch_button(self, down: bool) -> None:
        self._is_touch_frame = self._is_touch_frame or not down

    def resync(self, snapshot: Snapshot) -> None:
        """Lift all contacts, because the kernel keeps no state of this kind of device. The next frame reports those that are down."""
        self._contact, self._frame, self._is_touch_frame = None, [], True

    def end_frame(self, guest_input: GuestInput | None) -> None:
        if self._is_touch_frame:
            self._report(self._number(self._frame), guest_input)
        self._contact, self._frame, self._is_touch_frame = None, [], False

    def _number(self, frame: list[Slot]) -> dict[int, Slot]:
        """Give each contact of a frame the number of the nearest contact in the last frame, or of the contact with its tracking ID."""
        found: dict[int, Slot] = {}
        free = dict(self._reported)
        pairs = sorted(
            (_distance(old, slot), number, place)
            for number, old in free.items()
            for place, slot in enumerate(frame)
            if not self._has_tracking_ids or old.tracking == slot.tracking
        )
        placed: set[int] = set()
        for _, number, place in pairs:
            if number not in found and place not in placed:
                found[number] = frame[place]
                placed.add(place)
        for place, slot in enumerate(frame):
            if place not in placed:
                number = next(
                    number for number in range(len(frame) + len(free)) if number not in found and number not in free
                )
                found[number] = slot
        if not self._has_tracking_ids:
            for slot in found.values():
                slot.tracking = 0
        return dict(sorted(found.items()))


def _distance(one: Slot, other: Slot) -> int:
    """Return the square of the distance between two contacts."""
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2


class _SingleContact(TouchDecoder):
    """A touch screen for one contact: ABS_X, ABS_Y and BTN_TOUCH."""

    def __init__(
        self, source: InputSource, capabilities: Capabilities, snapshot: Snapshot, turn: Callable[[], Turn]
    ) -> None:
        super().__init__(source, capabilities, turn)
        self._contact = Slot()
        self.resync(snapshot)
        self.end_frame(None)

    def absolute(self, code: int, value: int) -> None:
        if code == ABS_X:
            self._contact.x = value
        elif code == ABS_Y:
            self._contact.y = value

    def touch_button(self, down: bool) -> None:
        self._contact.tracking = 0 if down else -1

    def resync(self, snapshot: Snapshot) -> None:
        self._contact.x = snapshot.axes.get(ABS_X, self._contact.x)
        self._contact.y = snapshot.axes.get(ABS_Y, self._contact.y)
        self._contact.tracking = 0 if BTN_TOUCH in snapshot.keys else -1

    def end_frame(self, guest_input: GuestInput | None) -> None:
        self._report({0: self._contact} if self._contact.tracking >= 0 else {}, guest_input)


def touch_decoder(
    source: InputSource, capabilities: Capabilities, snapshot: Snapshot, turn: Callable[[], Turn]
) -> TouchDecoder:
    """Return the decoder for the form in which a device reports its contacts."""
    if capabilities.slots:
        return _SlottedContacts(source, capabilities, snapshot, turn)
    if ABS_MT_POSITION_X in capabilities.abs_axes:
        return _AnonymousContacts(source, capabilities, turn)
    if ABS_X in capabilities.abs_axes and BTN_TOUCH in capabilities.keys:
        return _SingleContact(source, capabilities, snapshot, turn)
    return TouchDecoder(source, capabilities, turn)
