"""Decides which connectors of the guests' devices have a window. Of two that exclude each other, the one that came first has it.

A guest cannot change this order, because the toolstack creates and removes the devices. But a guest can make the toolstack do both: when it
reboots itself, the toolstack removes its devices and creates them again for a new domain. Compositors and window managers focus a new
window, so the guest would move the focus. Therefore the window of a removed connector is kept for a while, and the same guest's connector
of the same name takes it over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import trio

from .base import DeviceConnector, OutputUnavailable

__all__ = ["KEPT", "WindowQueue", "same_name"]

KEPT: Final = 10.0
"""Seconds that the window of a removed connector is kept for its guest, which may be rebooting. xl then removes the devices of the old
domain, frees its memory, sleeps for two seconds (create_domain in xl_vmcontrol.c), builds the new domain, and creates the new devices. Most
of the rest of the time goes into the guest's memory. It is not longer because a kept window may cover others.
"""

_log = structlog.get_logger("displbe.windows")


def same_name(name: str, other: str) -> str:
    """Return why two connectors of these names cannot both have a window; empty: they can."""
    return f"connector {name} is taken by another guest" if name == other else ""


class WindowQueue:
    """The connectors of all devices, and the windows of those that have one.

    `opened` is called when a connector gets its window: a new one, or, as second argument, the removed connector whose window it takes
    over. `closed` is called when a window has to go. `excludes` returns why two connectors of these names cannot both have a window, or the
    empty string.

    A window is kept only while `run` runs, and only for a guest whose name is known: the toolstack writes that name (backend.guests), and
    gives it to one domain at a time. A connector that waits for the place of a kept window gets it at once; so two windows, open or kept,
    never exclude each other.
    """

    def __init__(
        self,
        opened: Callable[[DeviceConnector, DeviceConnector | None], None],
        closed: Callable[[DeviceConnector], None],
        excludes: Callable[[str, str], str] = same_name,
    ) -> None:
        self._connectors: list[DeviceConnector] = []
        """In the order in which they came."""
        self._open: set[DeviceConnector] = set()
        """The connectors that have a window."""
        self._kept: dict[DeviceConnector, float] = {}
        """The removed connectors whose windows are kept -> the time until which, in seconds of trio's clock. The first one ends first."""
        self._opened = opened
        self._closed = closed
        self._excludes = excludes
        self._first_kept: trio.Event | None = None
        """Set when a window is kept while no other is; None: `run` does not run."""

    async def run(self) -> None:
        """Close the kept windows when their time has passed, and the rest when this is cancelled."""
        try:
            while True:
                self._first_kept = trio.Event()
                if not self._kept:
                    await self._first_kept.wait()
                await trio.sleep_until(min(self._kept.values(), default=trio.current_time()))
                self._expire()
        finally:
            self._first_kept = None
            for connector in list(self._kept):
                self._close_kept(connector)

    def add(self, connector: DeviceConnector) -> None:
        """Add a connector, and give it a window if that is possible."""
        self._connectors.append(connector)
        self._open_possible()
        if connector not in self._open:
            _log.warning(
                "no window for a connector: it gets one when the other connector is gone",
                connector=connector.name,
                domid=connector.claimant.domid,
                reason=self._obstacle(connector),
            )

    def remove(self, connector: DeviceConnector) -> None:
        """Remove a connector. Give its window's place to the next one; if there is none, keep the window for a while."""
        if connector not in self._connectors:
            return
        self._connectors.remove(connector)
        if connector not in self._open:
            return
        self._open.discard(connector)
        self._kept[connector] = trio.current_time() + KEPT if self._first_kept is not None else 0.0
        self._open_possible()
        if connector not in self._kept:
            return
        if self._first_kept is not None and connector.claimant.name:
            self._first_kept.set()
        else:
            self._close_kept(connector)
            self._open_possible()

    def is_kept(self, connector: DeviceConnector) -> bool:
        """Return whether a connector has been removed and its window is kept."""
        return connector in self._kept

    def _expire(self) -> None:
        """Close the windows whose time has passed, and give their places to the next ones."""
        now = trio.current_time()
        for connector in [each for each, until in self._kept.items() if until <= now]:
            self._close_kept(connector)
        try:
            self._open_possible()
        except Exception:  # as when a device is added (Supervisor): it costs this connector its window, and no other
            _log.exception("a window was not opened")

    def _close_kept(self, connector: DeviceConnector) -> None:
        del self._kept[connector]
        try:
            self._closed(connector)
        except Exception:  # the place is free in any case
            _log.exception("closing a window failed", connector=connector.name, domid=connector.claimant.domid)

    def _open_possible(self) -> None:
        for connector in self._connectors:
            if connector not in self._open and not self._obstacle(connector):
                self._give_window(connector)

    def _give_window(self, connector: DeviceConnector) -> None:
        """Give a connector the window that is kept for it, or a new one. Kept windows that exclude it are closed before."""
        before = self._left_for(connector)
        for other in [each for each in self._kept if each is not before]:
            if self._excludes(connector.name, other.name):
                self._close_kept(other)
        if before is not None:
            del self._kept[before]
        self._open.add(connector)
        self._opened(connector, before)

    def _left_for(self, connector: DeviceConnector) -> DeviceConnector | None:
        """Return the removed connector whose window is kept for this one: it has the same name, and so has its guest."""
        for other, until in self._kept.items():
            is_same = other.name == connector.name and other.claimant.name == connector.claimant.name != ""
            if is_same and until > trio.current_time():
                return other
        return None

    def _obstacle(self, connector: DeviceConnector) -> str:
        """Return why a connector without a window cannot have one; empty: it can."""
        reasons = (self._excludes(connector.name, other.name) for other in self._open)
        return next(filter(None, reasons), "") or self._predecessor(connector)

    def _predecessor(self, connector: DeviceConnector) -> str:
        """Return why a connector cannot take over the window that is kept for it yet; empty: it can, or there is none.

        The windows of a guest share a connection to the compositor, which two domains never do: all windows of the old domain have to be
        left before the new domain takes over the first.
        """
        guest = connector.claimant
        if self._left_for(connector) is not None:
            for other in self._open:
                if other.claimant.name == guest.name and other.claimant.domid != guest.domid:
                    return f"the guest's former domain {other.claimant.domid} still has the connector {other.name}"
        return ""

    def find(self, name: str, domid: int) -> DeviceConnector:
        """Return the guest's connector of this name. Raises OutputUnavailable if it has no window."""
        named = [each for each in self._connectors if each.name == name]
        mine = [each for each in named if each.claimant.domid == domid]
        for connector in mine:
            if connector in self._open:
                return connector
        if mine or named:
            raise OutputUnavailable(self._obstacle((mine or named)[0]) or same_name(name, name))
        raise OutputUnavailable(f"no device of this guest has a connector {name} in XenStore")

    def check_open(self, connector: DeviceConnector) -> None:
        """Raise OutputUnavailable if a connector has no window."""
        if connector not in self._open:
            raise OutputUnavailable(self._obstacle(connector) or f"no device has a connector {connector.name}")
