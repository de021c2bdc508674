"""The Wayland sink: guests as clients of a Wayland compositor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.flip import FlipClock
from displbe.sinks.seat import Seats

from .buffers import DmabufHistory
from .client import Client
from .conn import CompositorLost, Connection, connect
from .extensions import without_effect
from .link import EXTENSIONS
from .output import WaylandOutput, ivi_id
from .settings import WaylandSettings

__all__ = ["WaylandSink", "socket_path"]


def socket_path(display: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the path of the compositor's socket, by libwayland's rules.

    Where XDG_RUNTIME_DIR is not set, as for a system service, it is /run/user/UID.
    """
    name = display or environment.get("WAYLAND_DISPLAY", "") or "wayland-0"
    folder = environment.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid()}"
    return str(Path(folder) / name)


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
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await self._clock.run()
            finally:
                self._nursery = None

    def abilities(self) -> Mapping[str, str]:
        links = [client.link for client in self.clients.values() if client.link is not None]
        if not links:
            return {"compositor": "not reached" if self.clients else "not asked before a guest is connected"}
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

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if self.claimed(name) is not None:
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        if self._nursery is None:
            raise OutputUnavailable("the Wayland sink is not running")
        self._check_ivi_id(name)
        client = self.clients.get(claimant)
        if client is not None:
            return client.claim(name, width, height)
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
        output = client.claim(name, width, height)
        self._nursery.start_soon(client.run)
        return output

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

    def _check_ivi_id(self, name: str) -> None:
        """Check that no other connector has the ivi id of this one: a compositor ends a connection that uses an ivi id again.

        Raises OutputUnavailable.
        """
        number = ivi_id(name, self.settings.surfaces)
        if number is None or self.settings.shell == "xdg":
            return
        for client in self.clients.values():
            for other in client.outputs:
                if ivi_id(other, self.settings.surfaces) == number:
                    raise OutputUnavailable(f"connector {name} has the ivi id {number}, as has {other}")

    def _gone(self, client: Client) -> None:
        if self.clients.get(client.claimant) is client:
            del self.clients[client.claimant]

    def claimed(self, name: str) -> WaylandOutput | None:
        for client in self.clients.values():
            if name in client.outputs:
                return client.outputs[name]
        return None
