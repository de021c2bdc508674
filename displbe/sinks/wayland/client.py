"""One guest's connection to the compositor, which is made again whenever it is lost.

All surfaces of a guest share a connection, and two guests never do: a protocol error costs only the guest that caused it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import brief, severity
from displbe.sinks.base import Claimant, DeviceConnector
from displbe.sinks.flip import FlipClock
from displbe.sinks.seat import Seats
from displbe.sinks.tasks import Tasks
from displbe.wire.errors import first_leaf

from .buffers import DmabufHistory, ImportHistory
from .conn import CompositorLost, Connection, Proxy, connect
from .extensions import without_effect
from .guest import WaylandGuest
from .imports import BufferImports
from .link import Link
from .output import WaylandOutput
from .settings import WaylandSettings
from .window import WaylandWindow

__all__ = ["Client"]

SEARCH: Final = 0.5
"""Seconds between two attempts to connect while there is no compositor."""
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
"""Seconds until a lost connection is made again. The pause doubles from the first to the last value while connections are short."""
SHORT: Final = 5.0
"""Seconds. A connection that does not last longer counts as short."""


class Client:
    """A guest as a Wayland client, with a window for each connector of its devices. `path` is the compositor's socket; `gone` is called
    when the last connector is removed.

    It has sixteen attributes: windows and the outputs that show guests' frames in them are two things.

    Tests replace `opened`, which makes a connection.
    """

    def __init__(
        self,
        claimant: Claimant,
        settings: WaylandSettings,
        path: str,
        gone: Callable[[Client], None],
        *,
        clock: FlipClock,
        seats: Seats,
        dmabufs: DmabufHistory,
        opened: Callable[[str], Connection] = connect,
    ) -> None:
        self.claimant = claimant
        self.windows: dict[str, WaylandWindow] = {}
        """The windows by the names of their connectors."""
        self.outputs: dict[str, WaylandOutput] = {}
        """The windows that the guest has claimed: it is connected."""
        self.connections = 0
        """The number of connections made so far."""
        self._log = self._bind_log()
        self._say = SparseLog(self._log)
        self._tasks = Tasks(structlog.get_logger("displbe.wayland").bind(guest=claimant.name or claimant.domid))
        self._imports = BufferImports(settings, ImportHistory(dmabufs))
        self._guest = WaylandGuest(claimant, settings, self._imports, clock, seats, self._tasks)
        self._path = path
        self._gone = gone
        self._opened = opened
        self._scope = trio.CancelScope()

    @property
    def link(self) -> Link | None:
        """The connection, while there is one."""
        return self._imports.link

    def _bind_log(self) -> Any:
        return structlog.get_logger("displbe.wayland").bind(domid=self.claimant.domid, guest=self.claimant.name)

    # Windows and outputs

    def move(self, claimant: Claimant) -> None:
        """Be this claimant's client from now on: the guest has rebooted, and its new domain takes over the windows one by one."""
        self.claimant = self._guest.claimant = claimant
        self._log = self._bind_log()
        self._say = SparseLog(self._log)

    def add(self, connector: DeviceConnector) -> None:
        """Open a window for a connector, now or when there is a compositor."""
        window = self.windows[connector.name] = WaylandWindow(self._guest, connector)
        window.connected()

    def remove(self, connector: DeviceConnector) -> None:
        """Close a connector's window. The connection ends with the last one."""
        self.windows.pop(connector.name).close()
        if not self.windows:
            self._scope.cancel()
            self._gone(self)

    def claim(self, name: str) -> WaylandOutput:
        """Return the output that shows the guest's frames in a window. The window is not claimed."""
        output = self.outputs[name] = WaylandOutput(self._guest, self.windows[name], self._give_back)
        rate = self._guest.settings.refresh
        if rate > 0:
            self._tasks.start_soon(output.watch, rate)
        return output

    def _give_back(self, output: WaylandOutput) -> None:
        """Forget an output. Its window stays."""
        del self.outputs[output.name]

    # The connection

    async def run(self) -> None:
        """Stay connected until the last window is closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tasks.run)
                await self._stay_connected()

    async def _stay_connected(self) -> None:
        pause, waiting = FIRST_PAUSE, False
        while True:
            try:
                conn = self._opened(self._path)
            except OSError as error:
                if not waiting:
                    self._log.info("waiting for the compositor", socket=self._path, reason=error.strerror)
                waiting = True
                await trio.sleep(SEARCH)
                continue
            except Exception as error:  # not only OSError: libwayland or pywayland may fail in other ways
                self._say("cannot connect to the compositor; tried again", brief(error), level=severity(error))
                await trio.sleep(LAST_PAUSE)
                continue
            waiting = False
            began = trio.current_time()
            try:
                await self._serve(conn)
            except Exception as error:  # it costs this guest its connection, and no other guest anything
                what = "cannot clean up a connection to the compositor; a new one is made"
                self._say(what, brief(error), level=severity(error))
            pause = FIRST_PAUSE if trio.current_time() - began > SHORT else min(2 * pause, LAST_PAUSE)
            await trio.sleep(pause)

    async def _serve(self, conn: Connection) -> None:
        """Serve one connection until it ends."""
        link = Link(conn, self._guest.settings.shell, self._on_changed, self._find)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(conn.run, link.on_appeared, link.on_removed)
                await conn.sync()  # then the events that describe the globals have arrived too
                self._begin(link)
                await self._imports.offer_all()
                self._open_surfaces(link)
                while True:
                    await self._imports.offer_added()
        except* CompositorLost as lost:
            reason = str(first_leaf(lost))
            self._log.warning("compositor lost: the guest's outputs are dark until it is back", reason=reason)
        except* Exception as failed:
            first = first_leaf(failed)
            self._say("connection to the compositor failed: a new one is made", brief(first), level=severity(first))
        finally:
            with trio.CancelScope(shield=True):
                await self._end(link)

    def _begin(self, link: Link) -> None:
        """Use a connection whose globals are known. Raises CompositorLost."""
        if link.missing:
            raise CompositorLost(f"the compositor offers no {link.missing}")
        self._imports.link = link
        self.connections += 1
        self._log.info(
            "connected to the compositor",
            outputs=link.outputs.names,
            shells=[name for name, proxy in (("xdg", link.wm_base), ("ivi", link.ivi)) if proxy is not None],
            presentation=link.presentation is not None,
            dmabuf=link.dmabuf is not None,
        )
        for option, reason in without_effect(link, self._guest.settings).items():
            self._say("option without effect", reason, option=option)

    def _open_surfaces(self, link: Link) -> None:
        """Open the surfaces. All buffers have been offered: a surface's protocol error must not be taken for a buffer's."""
        self._guest.link = link
        for window in list(self.windows.values()):
            window.connected()

    async def _end(self, link: Link) -> None:
        """Forget a connection that has ended."""
        link.conn.lost.set()
        link.close()
        self._guest.link = None
        self._imports.lost()
        for output in list(self.outputs.values()):
            await output.disconnected()
        for window in list(self.windows.values()):
            window.disconnected()
        for output in list(self.outputs.values()):
            output.forget_frames()
        await link.conn.aclose()

    def _on_changed(self) -> None:
        """Follow the compositor: it has other outputs, or imports other formats."""
        for window in self.windows.values():
            window.outputs_changed()

    def _find(self, surface: Proxy) -> WaylandWindow | None:
        """Return the window that a wl_surface belongs to."""
        if surface is None:
            return None
        return next((window for window in self.windows.values() if window.surface.proxy is surface), None)
