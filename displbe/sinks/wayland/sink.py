"""Guests as clients of a Wayland compositor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats

from .client import Client, Dmabufs
from .conn import Connection, connect
from .output import WaylandOutput, ivi_id
from .settings import WaylandSettings

__all__ = ["WaylandSink", "socket_path"]

LATE_CHECK: Final = 0.25
"""Seconds between looks for flips of which the compositor says nothing."""


def socket_path(display: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where the compositor's socket is, by libwayland's rules; with /run/user/ID where XDG_RUNTIME_DIR is not set, as for a service."""
    name = display or environment.get("WAYLAND_DISPLAY", "") or "wayland-0"
    folder = environment.get("XDG_RUNTIME_DIR", "") or f"/run/user/{os.getuid()}"
    return str(Path(folder) / name)


class WaylandSink(Sink):
    """A compositor, with one connection for each guest."""

    wants_dmabuf = False

    def __init__(self, settings: WaylandSettings, opened: Callable[[str], Connection] = connect) -> None:
        self.settings = settings
        self.wants_shared = settings.zero_copy != "off"
        self._seats = self.seats = Seats()
        self.clients: dict[Claimant, Client] = {}
        self._path = socket_path(settings.display)
        self._opened = opened
        self._dmabufs = Dmabufs()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(LATE_CHECK)
                    now = trio.current_time()
                    for client in list(self.clients.values()):
                        for output in list(client.outputs.values()):
                            output.check_late(now)
            finally:
                self._nursery = None

    def abilities(self) -> Mapping[str, str]:
        sessions = [client.session for client in self.clients.values() if client.session is not None]
        if not sessions:
            return {"compositor": "not reached" if self.clients else "not asked before a guest is connected"}
        session = sessions[0]
        offers = {
            "xdg-shell": session.wm_base,
            "ivi-application": session.ivi,
            "linux-dmabuf": session.dmabuf,
            "viewporter": session.viewporter,
            "presentation-time": session.presentation,
        }
        words = [f"{name}: {'no' if proxy is None else 'yes'}" for name, proxy in offers.items()]
        return {"compositor": ", ".join(words)}

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if self.claimed(name) is not None:
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        if self._nursery is None:
            raise OutputUnavailable("the sink does not run")
        self._expect_own_surface(name)
        client = self.clients.get(claimant)
        if client is None:
            client = Client(claimant, self.settings, self._path, self._seats, self._gone, self._dmabufs, self._opened)
            self.clients[claimant] = client
            output = client.claim(name, width, height)
            self._nursery.start_soon(client.run)
            return output
        return client.claim(name, width, height)

    def _expect_own_surface(self, name: str) -> None:
        """A compositor ends the connection that uses a surface's id twice. Raises OutputUnavailable."""
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
