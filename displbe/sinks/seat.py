"""Input events of a compositor's or X server's seats, for the guest whose surface or window has the focus.

A sink with seats (`Sink.seats`) sends the events; the input devices listen, each for one guest and one of its connectors. Positions are
in the surface's coordinates, from 0 to its size; each position comes with that size. Key and button codes are those of Linux
(input-event-codes.h).
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeAlias

import msgspec
import structlog
import trio

__all__ = [
    "LOCK_KEYS",
    "GuestPresence",
    "KeyboardEnter",
    "KeyboardKey",
    "KeyboardLeave",
    "KeyboardLocks",
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
    "WindowListeners",
]

LOCK_KEYS: Final = frozenset((58, 69))
"""KEY_CAPSLOCK and KEY_NUMLOCK. While one of them is down, its lock is about to change, in a way that the keymap decides: sinks then send
no KeyboardLocks.
"""

_log = structlog.get_logger("displbe.seat")


class KeyboardEnter(msgspec.Struct, frozen=True):
    """The guest has the keyboard from now on. The keys `keys` are down already."""

    keys: tuple[int, ...]


class KeyboardLeave(msgspec.Struct, frozen=True):
    """The guest no longer has the keyboard. Keys that are down count as released."""


class KeyboardKey(msgspec.Struct, frozen=True):
    """A key is pressed or released. There are no repetitions."""

    code: int
    down: bool


class KeyboardLocks(msgspec.Struct, frozen=True):
    """The desktop's Caps Lock and Num Lock, just before the first key that is pressed since the guest has the keyboard, or since the
    window's listeners have changed: a guest that connects while its window has the focus has to learn them too.
    """

    caps: bool
    num: bool


class PointerEnter(msgspec.Struct, frozen=True):
    """The pointer enters the surface."""

    x: float
    y: float
    width: int
    height: int


class PointerLeave(msgspec.Struct, frozen=True):
    """The pointer leaves the surface. Buttons that are down count as released."""


class PointerMotion(msgspec.Struct, frozen=True):
    """The pointer moves. While a button is down, the position may be outside the surface."""

    x: float
    y: float
    width: int
    height: int


class PointerButton(msgspec.Struct, frozen=True):
    """A button is pressed or released."""

    code: int
    down: bool


class PointerAxis(msgspec.Struct, frozen=True):
    """The wheel turns, in 120ths of a detent as in REL_WHEEL_HI_RES. Up and right are positive."""

    vertical: int
    horizontal: int


class PointerFrame(msgspec.Struct, frozen=True):
    """The pointer events since the last PointerFrame belong together."""


class TouchDown(msgspec.Struct, frozen=True):
    """A finger touches the surface. `id` names it until TouchUp and is unique among all fingers that are down, on all seats."""

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
    """The ellipse that a finger covers: its longer and shorter diameter, in the unit of positions."""

    id: int
    major: float
    minor: float
    width: int
    height: int


class TouchOrientation(msgspec.Struct, frozen=True):
    """The angle of the ellipse's longer axis in degrees, clockwise from the Y axis, -180 to 180."""

    id: int
    degrees: float


class TouchUp(msgspec.Struct, frozen=True):
    """A finger is lifted."""

    id: int


class TouchFrame(msgspec.Struct, frozen=True):
    """The touch events since the last TouchFrame belong together."""


class TouchCancel(msgspec.Struct, frozen=True):
    """The compositor takes over all touches. All fingers count as lifted."""


SeatEvent: TypeAlias = (
    KeyboardEnter
    | KeyboardLeave
    | KeyboardKey
    | KeyboardLocks
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


class GuestPresence(enum.Enum):
    """Whether the window's guest gets its input."""

    AWAY = "away"
    """The guest is not connected. Events go nowhere."""
    ARRIVED = "arrived"
    """The guest is connected, and does not know yet where the pointer is: the next motion is an enter event for it."""
    PRESENT = "present"
    """The guest is connected and gets the events as they are."""


class WindowListeners:
    """The listeners to the events of one connector's window, for the sink that shows it. `Seats.window` makes it.

    It goes to the connector's guest while the guest is connected (`attach`), and nowhere while it is not: the window stays on the
    desktop then, and the user may type into it. The sink sets `on_change`, which is called when `takes_pointer` or `takes_keyboard` may
    have changed.
    """

    def __init__(self, seats: Seats, domid: int, connector: str) -> None:
        self.on_change: Callable[[], None] = _ignore
        self.guest = GuestPresence.AWAY
        self._seats = seats
        self._key = domid, connector
        self._entered: dict[type[SeatEvent], SeatEvent] = {}
        """The leave event of each kind of device whose events the guest has got since it was left last."""

    def attach(self) -> None:
        """Pass events to the guest from now on: it is connected."""
        self.guest = GuestPresence.ARRIVED
        self.on_change()

    def detach(self) -> None:
        """Pass no more events to the guest: its connection has ended. Everything that is held down counts as released."""
        for leave in list(self._entered.values()):
            self._tell(leave)
        self.guest = GuestPresence.AWAY
        self.on_change()

    def tell(self, event: SeatEvent) -> None:
        """Pass an event for the window to its listeners, if the guest is connected."""
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
            case KeyboardEnter() | KeyboardKey() | KeyboardLocks():
                self._entered[KeyboardLeave] = KeyboardLeave()
            case PointerEnter() | PointerMotion() | PointerButton() | PointerAxis():
                self._entered[PointerLeave] = PointerLeave()
            case PointerFrame():
                pass  # a frame also follows PointerLeave
            case _:
                self._entered[TouchCancel] = TouchCancel()
        self._seats.tell(*self._key, event)

    @property
    def takes_pointer(self) -> bool:
        """Whether the guest takes pointer events of this window. It then draws a cursor of its own."""
        return self.guest is not GuestPresence.AWAY and self._seats.takes_pointer(*self._key)

    @property
    def takes_keyboard(self) -> bool:
        """Whether the guest takes the keys of this window."""
        return self.guest is not GuestPresence.AWAY and self._seats.takes_keyboard(*self._key)

    def moved(self, domid: int, connector: str) -> None:
        """Belong to this guest's connector from now on, which has taken over the window. Everything that is held down counts as released
        for the former guest. The new one gets no events before `attach`.
        """
        self.detach()
        self._seats.forget(self, *self._key)
        self._key = domid, connector
        self._seats.remember(self, domid, connector)
        self.on_change()

    def close(self) -> None:
        """Forget the window: its output is given back."""
        self._seats.forget(self, *self._key)


def _ignore() -> None:
    """The default of `WindowListeners.on_change`."""


class _Listener(msgspec.Struct, frozen=True, eq=False):
    """A listener to the events for a connector's window."""

    hear: Callable[[SeatEvent], None]
    pointer: bool
    """Whether its guest takes pointer events."""
    keyboard: bool
    """Whether its guest takes keys."""


async def _at_once(domid: int, connector: str) -> bool:
    await trio.lowlevel.checkpoint()
    return True


class Seats:
    """Passes events to listeners. Connectors and listeners may come and go independently.

    `settle` waits until the events for the surface of a guest's connector up to now have been passed on, and returns whether that is
    certain. It asks the compositor or X server twice, one question after the answer to the other: a server that stood still may answer the
    first question before it looks at its input devices, but not the second. It may wait for as long as the server stands still.
    """

    def __init__(self, settle: Callable[[int, str], Awaitable[bool]] = _at_once) -> None:
        self.settle = settle
        self._listeners: dict[tuple[int, str], list[_Listener]] = {}
        """(domid, connector) -> the listeners to events for its surface."""
        self._windows: dict[tuple[int, str], WindowListeners] = {}
        """(domid, connector) -> its window in a sink."""

    @contextlib.contextmanager
    def listening(
        self,
        domid: int,
        connector: str,
        hear: Callable[[SeatEvent], None],
        *,
        pointer: bool = True,
        keyboard: bool = True,
    ) -> Iterator[None]:
        """Call `hear` with each event for the surface of this guest's connector while the block lasts. `pointer`: the guest takes pointer
        events, and draws a cursor of its own. `keyboard`: it takes keys.

        `hear` must neither block nor raise. When a surface loses the focus because its guest, its window or the compositor is gone, the
        leave events come first.
        """
        key, listener = (domid, connector), _Listener(hear, pointer, keyboard)
        listeners = self._listeners.setdefault(key, [])
        listeners.append(listener)
        self._tell_window(key)
        try:
            yield
        finally:
            listeners.remove(listener)
            if not listeners:
                self._listeners.pop(key, None)
            self._tell_window(key)

    def tell(self, domid: int, connector: str, event: SeatEvent) -> None:
        """Pass an event for the surface of this guest's connector to its listeners. For sinks."""
        for listener in tuple(self._listeners.get((domid, connector), ())):
            try:
                listener.hear(event)
            except Exception:  # an error in one guest's input must not end the sink
                _log.exception("input listener failed", connector=connector)

    def takes_pointer(self, domid: int, connector: str) -> bool:
        """Return whether this guest takes pointer events of its connector's window."""
        return any(listener.pointer for listener in self._listeners.get((domid, connector), ()))

    def takes_keyboard(self, domid: int, connector: str) -> bool:
        """Return whether this guest takes the keys of its connector's window."""
        return any(listener.keyboard for listener in self._listeners.get((domid, connector), ()))

    def window(self, domid: int, connector: str) -> WindowListeners:
        """Return the listeners to the window of this guest's connector, for the sink that shows it."""
        made = WindowListeners(self, domid, connector)
        self.remember(made, domid, connector)
        return made

    def remember(self, window: WindowListeners, domid: int, connector: str) -> None:
        """Tell a window about the listeners of this guest's connector from now on."""
        self._windows[domid, connector] = window

    def forget(self, window: WindowListeners, domid: int, connector: str) -> None:
        """Forget a window, unless another one has taken its place."""
        if self._windows.get((domid, connector)) is window:
            del self._windows[domid, connector]

    def _tell_window(self, key: tuple[int, str]) -> None:
        window = self._windows.get(key)
        if window is not None:
            try:
                window.on_change()
            except Exception:  # an error in a sink must not end the guest's input
                _log.exception("the window does not follow its guest's input", connector=key[1])
