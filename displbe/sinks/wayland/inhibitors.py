"""What a surface asks the compositor to leave: its keyboard shortcuts (keyboard-shortcuts-inhibit), and the screen's sleep (idle-inhibit).

The compositor decides. It may refuse, ask its user, or keep a shortcut by which the user takes the others back.
"""

from __future__ import annotations

import enum
from typing import Final

import structlog

from displbe.ops.log import SparseLog
from displbe.sinks.seat import KeyboardEnter, KeyboardKey, PointerButton, SeatEvent
from displbe.sinks.way_out import WayOut

from .conn import Proxy
from .link import Link
from .seat_devices import SeatDevices

__all__ = ["IDLE_MANAGER", "SHORTCUTS_MANAGER", "IdleInhibitor", "ShortcutsInhibitors", "ShortcutsState"]

IDLE_MANAGER: Final = "zwp_idle_inhibit_manager_v1"
SHORTCUTS_MANAGER: Final = "zwp_keyboard_shortcuts_inhibit_manager_v1"
"""The globals that make the inhibitors."""


class IdleInhibitor:
    """Keeps the compositor's screens on while a guest's picture is seen. The compositor ignores it while the surface is not visible."""

    def __init__(self, link: Link, surface: Proxy) -> None:
        self._link = link
        self._surface = surface
        self._proxy: Proxy = None

    def set(self, active: bool) -> None:
        """Inhibit or allow the screens' sleep. Nothing happens where the compositor does not offer this."""
        manager = self._link.extensions.get(IDLE_MANAGER)
        if active and self._proxy is None and manager is not None:
            self._proxy = self._link.conn.keep(manager.create_inhibitor(self._surface))
        elif not active and self._proxy is not None:
            self._link.conn.destroy(self._proxy)
            self._proxy = None


class ShortcutsState(enum.Enum):
    """Whether a guest gets the keys of the compositor's shortcuts."""

    ASKED = "asked"
    """The compositor has not answered: it refuses, waits for its user's word, or the surface has not had the keyboard yet."""
    ACTIVE = "active"
    """The guest gets all keys while its surface has the keyboard."""
    INACTIVE = "inactive"
    """The compositor has its shortcuts back: its user wants it so."""


class ShortcutsInhibitors:
    """Asks the compositor for the keys of its shortcuts, for one surface and all seats. `window` is the window's name for the log.

    The user's way out is what the compositor offers, and the keys of displbe.sinks.way_out, which work with every compositor.
    """

    def __init__(self, link: Link, surface: Proxy, window: str) -> None:
        self.states: dict[SeatDevices, ShortcutsState] = {}
        """The state for each seat that has been asked."""
        self.is_left = False
        """Whether the user has taken the shortcuts back by the way out, until the surface gets the keyboard the next time."""
        self._proxies: dict[SeatDevices, Proxy] = {}
        self._link = link
        self._surface = surface
        self._wanted = False
        """Whether the guest takes the keyboard."""
        self._way_out = WayOut()
        self._say = SparseLog(structlog.get_logger("displbe.wayland").bind(window=window))

    def set(self, active: bool) -> None:
        """Follow the compositor's seats. `active`: the guest takes the keyboard; else leave the shortcuts to the compositor."""
        self._wanted = active
        self._follow()

    def _follow(self) -> None:
        manager = self._link.extensions.get(SHORTCUTS_MANAGER)
        wanted = self._wanted and not self.is_left and manager is not None
        seats = list(self._link.seats.values()) if wanted else []
        for seat in [seat for seat in self._proxies if seat not in seats]:
            self._link.conn.destroy(self._proxies.pop(seat))
            del self.states[seat]
        for seat in seats:
            if seat not in self._proxies:
                self._ask(manager, seat)

    def _ask(self, manager: Proxy, seat: SeatDevices) -> None:
        conn = self._link.conn
        proxy = self._proxies[seat] = conn.keep(manager.inhibit_shortcuts(self._surface, seat.proxy))
        self.states[seat] = ShortcutsState.ASKED
        conn.on(proxy, "active", lambda: self._on_answer(seat, ShortcutsState.ACTIVE))
        conn.on(proxy, "inactive", lambda: self._on_answer(seat, ShortcutsState.INACTIVE))

    def _on_answer(self, seat: SeatDevices, state: ShortcutsState) -> None:
        if seat not in self.states:
            return
        self.states[seat] = state
        if state is ShortcutsState.ACTIVE:
            self._say("the guest gets the compositor's shortcuts", "left Ctrl+Alt gives them back", level="info")
        else:
            self._say("the compositor has taken its shortcuts back", "its user wants them", level="info")

    def handle(self, event: SeatEvent) -> None:
        """Handle an event of a seat for the surface: the guest has got the keyboard, or the user takes the way out."""
        match event:
            case KeyboardEnter():
                self._way_out.reset()
                self.is_left = False
                self._follow()
                self._link.conn.call_after_sync(self._check)
            case KeyboardKey(code, down):
                if self._way_out.key(code, down):
                    self.is_left = not self.is_left
                    self._follow()
            case PointerButton(down=True):
                self._way_out.spoil()

    def _check(self) -> None:
        """Log it if the surface has the keyboard, and the compositor does not answer."""
        if ShortcutsState.ASKED in self.states.values():
            self._say(
                "the compositor keeps its shortcuts",
                "it has not allowed inhibit-shortcuts: allow it in its dialog or settings, or set inhibit-shortcuts = false",
            )

    def close(self) -> None:
        """Destroy the inhibitors: the surface is about to be destroyed."""
        self.set(False)
