"""The input of one connector's window. It goes to the connector's guest while the guest is connected, and nowhere while it is not.

The window stays on the desktop while its guest is away, and the user may type into it then.
"""

from __future__ import annotations

import enum

from .seat import (
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
    Seats,
    TouchCancel,
)

__all__ = ["GuestPresence", "WindowSeat"]


class GuestPresence(enum.Enum):
    """Whether the window's guest gets its input."""

    AWAY = "away"
    """The guest is not connected. Events go nowhere."""
    ARRIVED = "arrived"
    """The guest is connected, and does not know yet where the pointer is: the next motion is an enter event for it."""
    PRESENT = "present"
    """The guest is connected and gets the events as they are."""


class WindowSeat:
    """The events of one window, for the guest `domid`."""

    def __init__(self, seats: Seats, domid: int, connector: str) -> None:
        self.guest = GuestPresence.AWAY
        self._seats = seats
        self._domid = domid
        self._connector = connector
        self._entered: dict[type[SeatEvent], SeatEvent] = {}
        """The leave event of each kind of device whose events the guest has got since it was left last."""

    def attach(self) -> None:
        """Pass events to the guest from now on: it is connected."""
        self.guest = GuestPresence.ARRIVED

    def detach(self) -> None:
        """Pass no more events to the guest: its connection has ended. Everything that is held down counts as released."""
        for leave in list(self._entered.values()):
            self._tell(leave)
        self.guest = GuestPresence.AWAY

    def tell(self, event: SeatEvent) -> None:
        """Pass an event of the window to the guest, if it is connected."""
        if self.guest is GuestPresence.AWAY:
            return
        if self.guest is GuestPresence.ARRIVED:
            match event:
                case PointerEnter():
                    self.guest = GuestPresence.PRESENT
                case PointerMotion(x, y, width, height):
                    self.guest = GuestPresence.PRESENT
                    event = PointerEnter(x, y, width, height)
        self._tell(event)

    def _tell(self, event: SeatEvent) -> None:
        match event:
            case KeyboardLeave() | PointerLeave() | TouchCancel():
                self._entered.pop(type(event), None)
            case KeyboardEnter() | KeyboardKey():
                self._entered[KeyboardLeave] = KeyboardLeave()
            case PointerEnter() | PointerMotion() | PointerButton() | PointerAxis():
                self._entered[PointerLeave] = PointerLeave()
            case PointerFrame():
                pass  # a frame also follows PointerLeave
            case _:
                self._entered[TouchCancel] = TouchCancel()
        self._seats.tell(self._domid, self._connector, event)
