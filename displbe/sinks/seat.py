"""What a compositor's seats say while one of our surfaces has their focus, for the guest whose surface it is.

A sink with seats (`Sink.seats`) tells; input listens, for a guest and one of its connectors. Positions are in the surface's own
coordinates, from 0 to its size, which comes with each of them. Key and button codes are Linux's (input-event-codes.h).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec
import structlog

__all__ = [
    "KeyboardEnter",
    "KeyboardKey",
    "KeyboardLeave",
    "PointerAxis",
    "PointerButton",
    "PointerEnter",
    "PointerFrame",
    "PointerLeave",
    "PointerMotion",
    "SeatEvent",
    "Seats",
    "TouchCancel",
    "TouchDown",
    "TouchFrame",
    "TouchMotion",
    "TouchOrientation",
    "TouchShape",
    "TouchUp",
]

_log = structlog.get_logger("displbe.seat")


class KeyboardEnter(msgspec.Struct, frozen=True):
    """The guest has the keyboard from now on; `keys` are down already."""

    keys: tuple[int, ...]


class KeyboardLeave(msgspec.Struct, frozen=True):
    """The guest has the keyboard no more: what is down counts as let go."""


class KeyboardKey(msgspec.Struct, frozen=True):
    """A key goes down or up. Compositors do not send repetitions."""

    code: int
    down: bool


class PointerEnter(msgspec.Struct, frozen=True):
    """The pointer comes over the surface."""

    x: float
    y: float
    width: int
    height: int


class PointerLeave(msgspec.Struct, frozen=True):
    """It leaves: buttons that are down count as let go."""


class PointerMotion(msgspec.Struct, frozen=True):
    """It moves. While a button is down, it may be outside the surface."""

    x: float
    y: float
    width: int
    height: int


class PointerButton(msgspec.Struct, frozen=True):
    """A button goes down or up."""

    code: int
    down: bool


class PointerAxis(msgspec.Struct, frozen=True):
    """The wheel turns, in 120ths of a detent as in REL_WHEEL_HI_RES; positive is up, and right."""

    vertical: int
    horizontal: int


class PointerFrame(msgspec.Struct, frozen=True):
    """What came since the last one belongs together."""


class TouchDown(msgspec.Struct, frozen=True):
    """A finger comes down. `id` names it until it goes up; no two that are down have the same, whatever their seats."""

    id: int
    x: float
    y: float
    width: int
    height: int


class TouchMotion(msgspec.Struct, frozen=True):
    """A finger moves."""

    id: int
    x: float
    y: float
    width: int
    height: int


class TouchShape(msgspec.Struct, frozen=True):
    """The ellipse that a finger touches: its diameters, as long as positions are."""

    id: int
    major: float
    minor: float
    width: int
    height: int


class TouchOrientation(msgspec.Struct, frozen=True):
    """The angle of the ellipse's longer axis, clockwise from the Y axis, -180 to 180."""

    id: int
    degrees: float


class TouchUp(msgspec.Struct, frozen=True):
    """A finger goes up."""

    id: int


class TouchFrame(msgspec.Struct, frozen=True):
    """What came since the last one belongs together."""


class TouchCancel(msgspec.Struct, frozen=True):
    """The compositor has taken all touches for itself: all fingers count as up."""


SeatEvent: TypeAlias = (
    KeyboardEnter
    | KeyboardLeave
    | KeyboardKey
    | PointerEnter
    | PointerLeave
    | PointerMotion
    | PointerButton
    | PointerAxis
    | PointerFrame
    | TouchDown
    | TouchMotion
    | TouchShape
    | TouchOrientation
    | TouchUp
    | TouchFrame
    | TouchCancel
)


class Seats:
    """Who listens. Connectors come and go while somebody listens, and the other way round."""

    def __init__(self) -> None:
        self._hear: dict[tuple[int, str], list[Callable[[SeatEvent], None]]] = {}

    @contextlib.contextmanager
    def listening(self, domid: int, connector: str, hear: Callable[[SeatEvent], None]) -> Iterator[None]:
        """Hear what the surface of this guest's connector is sent while the block lasts. `hear` must neither block nor raise.

        A surface that had the focus when its guest, its window or the compositor went has been left before anything else is heard.
        """
        listeners = self._hear.setdefault((domid, connector), [])
        listeners.append(hear)
        try:
            yield
        finally:
            listeners.remove(hear)
            if not listeners:
                self._hear.pop((domid, connector), None)

    def tell(self, domid: int, connector: str, event: SeatEvent) -> None:
        """For the sink: the surface of this guest's connector is sent this."""
        for hear in tuple(self._hear.get((domid, connector), ())):
            try:
                hear(event)
            except Exception:  # a mistake in one guest's input must not end a sink
                _log.exception("input failed", connector=connector)
