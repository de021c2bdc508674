"""What a surface asks the compositor to leave: its keyboard shortcuts (keyboard-shortcuts-inhibit), and the screen's sleep (idle-inhibit).

The compositor decides. It may refuse, ask its user, or keep a shortcut by which the user takes the others back.
"""

from __future__ import annotations

import enum
from typing import Final

import structlog

from displbe.ops.log import SparseLog

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
    """Asks the compositor for the keys of its shortcuts, for one surface and all seats."""

    def __init__(self, link: Link, surface: Proxy, window: str) -> None:
        self.states: dict[SeatDevices, ShortcutsState] = {}
        self._proxies: dict[SeatDevices, Proxy] = {}
        self._link = link
        self._surface = surface
        self._say = SparseLog(structlog.get_logger("displbe.wayland").bind(window=window))

    def set(self, active: bool) -> None:
        """Follow the compositor's seats: ask for the shortcuts of each. `active`: the guest takes the keyboard; else leave them."""
        manager = self._link.extensions.get(SHORTCUTS_MANAGER)
        seats = list(self._link.seats.values()) if active and manager is not None else []
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
            self._say("the guest gets the compositor's shortcuts", "inhibit-shortcuts", level="info")
        else:
            self._say("the compositor has taken its shortcuts back", "its user wants them", level="info")

    def on_keyboard_enter(self) -> None:
        """Log it if the surface gets the keyboard and the compositor does not answer."""
        self._link.conn.call_after_sync(self._check)

    def _check(self) -> None:
        if ShortcutsState.ASKED in self.states.values():
            self._say(
                "the compositor keeps its shortcuts",
                "it has not allowed inhibit-shortcuts: allow it in its dialog or settings, or set inhibit-shortcuts = false",
            )

    def close(self) -> None:
        """Destroy the inhibitors: the surface is about to be destroyed."""
        self.set(False)
