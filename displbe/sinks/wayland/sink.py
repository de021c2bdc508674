"""Guests as clients of a Wayland compositor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats

from .client import Client, Dmabufs
from .conn import Connection, connect
from .output import WaylandOutput, ivi_id

__all__ = ["WaylandSettings", "WaylandSink", "socket_path"]

LATE_CHECK: Final = 0.25
"""Seconds between looks for flips of which the compositor says nothing."""


class WaylandSettings(Protocol):
    """`[wayland]` of the configuration, which configs/displbe.toml explains."""

    @property
    def display(self) -> str:
        """The compositor's socket: a path, or a name in $XDG_RUNTIME_DIR; empty: what $WAYLAND_DISPLAY says."""

    @property
    def zero_copy(self) -> str:
        """`auto` or `off`."""

    @property
    def dmabuf(self) -> str:
        """`auto`, `always` or `never`."""

    @property
    def shell(self) -> str:
        """`auto` or `xdg`."""

    @property
    def title(self) -> str:
        """A window's title, with {guest} and {connector}."""

    @property
    def app_id(self) -> str:
        """Its application's id, likewise."""

    @property
    def scale(self) -> str:
        """`fit`, `stretch` or `none`."""

    @property
    def refresh(self) -> float:
        """How often a second a frame is looked at for what the guest draws without flipping; 0: never."""

    @property
    def on_close(self) -> str:
        """`ignore` or `detach`."""

    @property
    def outputs(self) -> Mapping[str, str]:
        """The compositor's outputs that connectors fill, by the connectors' names."""

    @property
    def surfaces(self) -> Mapping[str, int]:
        """The ivi ids of connectors whose names are no numbers."""


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
