"""The Wayland sink: guests as clients of a Wayland compositor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from displbe.sinks.base import NOBODY, Claimant, DeviceConnector, Output, OutputUnavailable, Sink
from displbe.sinks.flip import FlipClock
from displbe.sinks.seat import Seats
from displbe.sinks.window_queue import WindowQueue, same_name

from .buffers import DmabufHistory
from .client import Client
from .conn import CompositorLost, Connection, connect
from .extensions import without_effect
from .link import EXTENSIONS
from .output import WaylandOutput
from .settings import WaylandSettings
from .socket_path import socket_path
from .window import ivi_id

__all__ = ["WaylandSink"]


class WaylandSink(Sink):
    """A compositor, to which each guest has its own connection. Tests replace `opened`, which makes a connection."""

    wants_dmabuf = False

    def __init__(self, settings: WaylandSettings, opened: Callable[[str], Connection] = connect) -> None:
        self.settings = settings
        self.wants_shared = settings.zero_copy != "off" and settings.trust_compositor
        self._seats = self.seats = Seats(self._settle)
        self.clients: dict[Claimant, Client] = {}
        self._path = socket_path(settings.display)
        self._opened = opened
        self._clock = FlipClock()
        self._dmabufs = DmabufHistory()
        self._queue = WindowQueue(self._open, self._close, self._exclude)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            nursery.start_soon(self._queue.run)
            try:
                await self._clock.run()
            finally:
                self._nursery = None

    def abilities(self) -> Mapping[str, str]:
        links = [client.link for client in self.clients.values() if client.link is not None]
        if not links:
            return {"compositor": "not reached" if self.clients else "not asked before a guest has a display"}
        link = links[0]
        offers = {
            "xdg-shell": link.wm_base,
            "ivi-application": link.ivi,
            "linux-dmabuf": link.dmabuf,
            "viewporter": link.viewporter,
            "presentation-time": link.presentation,
            **{name: link.extensions.get(interface) for interface, name in EXTENSIONS.items()},
        }
        words = [f"{name}: {'no' if proxy is None else 'yes'}" for name, proxy in offers.items()]
        useless = without_effect(link, self.settings)
        more = {f"option {name}": f"without effect: {reason}" for name, reason in useless.items()}
        return {"compositor": ", ".join(words), **more}

    # Windows

    def connector_added(self, connector: DeviceConnector) -> None:
        self._queue.add(connector)

    def connector_removed(self, connector: DeviceConnector) -> None:
        self._queue.remove(connector)

    def reopen(self, connector: DeviceConnector) -> None:
        self._queue.check_open(connector)
        self._client_of(connector).windows[connector.name].reopen()

    def _open(self, connector: DeviceConnector, before: DeviceConnector | None) -> None:
        """Give a connector a window: that of the removed connector `before`, if there is one, or a new one."""
        claimant = connector.claimant
        client = self.clients.get(claimant) or self._left_client(claimant, before) or self._new_client(claimant)
        if before is None:
            client.add(connector)
        elif before.name in client.windows:
            client.windows[before.name].move(connector)
        else:  # another window of the guest is on a connection of its own already, and a window cannot change its connection
            self._close(before)
            client.add(connector)

    def _left_client(self, claimant: Claimant, before: DeviceConnector | None) -> Client | None:
        """Return the client of the guest's former domain, for the new domain; None: there is none, or that domain still has a window."""
        for client in self.clients.values():
            connectors = (window.connector for window in client.windows.values())
            left = all(each == before or self._queue.is_kept(each) for each in connectors)
            if left and client.claimant.name == claimant.name != "":
                del self.clients[client.claimant]
                self.clients[claimant] = client
                client.move(claimant)
                return client
        return None

    def _new_client(self, claimant: Claimant) -> Client:
        """Return a new client for a guest, which connects to the compositor."""
        client = self.clients[claimant] = Client(
            claimant,
            self.settings,
            self._path,
            self._gone,
            clock=self._clock,
            seats=self._seats,
            dmabufs=self._dmabufs,
            opened=self._opened,
        )
        if self._nursery is not None:
            self._nursery.start_soon(client.run)
        return client

    def _client_of(self, connector: DeviceConnector) -> Client:
        """Return the client that has a connector's window. No two windows have connectors of one name."""
        return next(client for client in self.clients.values() if connector.name in client.windows)

    def _close(self, connector: DeviceConnector) -> None:
        self._client_of(connector).remove(connector)

    async def _settle(self, domid: int, connector: str) -> bool:
        """Wait for two answers of the compositor to wl_display.sync (Seats)."""
        for claimant, client in self.clients.items():
            if claimant.domid == domid and connector in client.outputs and client.link is not None:
                try:
                    await client.link.conn.sync()
                    await client.link.conn.sync()
                except CompositorLost:
                    return False
                return True
        return False

    def _exclude(self, name: str, other: str) -> str:
        """Return why two connectors of these names cannot both have a window: their name, or their ivi id, since a compositor ends a
        connection that uses an ivi id again. Empty: they can.
        """
        number = ivi_id(name, self.settings.surfaces)
        if number is not None and self.settings.shell != "xdg" and name != other:
            return (
                f"connector {name} has the ivi id {number}, as has {other}"
                if ivi_id(other, self.settings.surfaces) == number
                else ""
            )
        return same_name(name, other)

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if self._nursery is None:
            raise OutputUnavailable("the Wayland sink is not running")
        connector = self._queue.find(name, claimant.domid)
        if self.claimed(name) is not None:
            raise OutputUnavailable(f"connector {name} is taken by another device of this guest")
        return self._client_of(connector).claim(name)

    def _gone(self, client: Client) -> None:
        if self.clients.get(client.claimant) is client:
            del self.clients[client.claimant]

    def claimed(self, name: str) -> WaylandOutput | None:
        for client in self.clients.values():
            if name in client.outputs:
                return client.outputs[name]
        return None
