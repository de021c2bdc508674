"""The X11 sink: a window for each connector of the guests' devices, on the desktop of an X server. When the server is lost, the guests
go on, and the sink tries to connect again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import structlog
import trio
import xcffib

from displbe.ops.log import SparseLog
from displbe.shortage import shortage
from displbe.sinks.base import NOBODY, Claimant, DeviceConnector, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats
from displbe.sinks.tasks import Tasks
from displbe.sinks.window_queue import WindowQueue
from displbe.threads import run_in_thread
from displbe.wire.errors import first_leaf

from .desktop import Desktop
from .monitors import Monitor, read_monitors
from .output import X11Output
from .painter import Painter
from .server import Server, ServerLost, ServerUnreachable
from .settings import X11Settings

__all__ = ["X11Sink"]

RETRY: Final = 1.0
"""Seconds between two attempts to reach the server."""
SETTLE: Final = 0.1
"""Seconds from the server's first event about its monitors until they are read: a change sends several events."""
NO_SCREEN_SAVER: Final = (
    "the X server has no MIT-SCREEN-SAVER 1.1, so its screen may go off while a guest is watched: "
    "switch the screen saver off (xset s off -dpms), or remove the option"
)
_log = structlog.get_logger("displbe.x11")
_say: Final = SparseLog(_log)


class X11Sink(Sink):
    """Windows on a desktop."""

    wants_dmabuf = False

    def __init__(self, settings: X11Settings) -> None:
        self.desktop = Desktop(settings)
        self.seats: Seats = self.desktop.seats
        self.painters: dict[str, Painter] = {}
        """What keeps the windows, by the names of their connectors."""
        self.outputs: dict[str, X11Output] = {}
        """The windows that guests have claimed: they are connected."""
        self._queue = WindowQueue(self._open, self._close)
        self._tasks = Tasks(_log)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.desktop.clock.run)
            await nursery.start(self._tasks.run)
            nursery.start_soon(self._queue.run)
            task_status.started()
            await self._keep_connected()

    def abilities(self) -> Mapping[str, str]:
        server = self.desktop.server
        if server is None:
            return {"X server": "not reached"}
        names = ", ".join(monitor.name for monitor in server.monitors)
        answers = {"X server": "reached", "monitors": names or "no names: it lacks RandR 1.5"}
        if self.desktop.settings.inhibit_idle and not server.screen_saver.is_offered:
            answers["option inhibit-idle"] = f"without effect: {NO_SCREEN_SAVER}"
        return answers

    async def _keep_connected(self) -> None:
        logged = ""
        while True:
            try:
                # Connecting may block for as long as the server hangs; on cancellation the thread is left behind.
                display = self.desktop.settings.display
                server = await run_in_thread(Server, display, abandon_on_cancel=True)
            except ServerUnreachable as error:
                if str(error) != logged:
                    _log.warning("no X server: the guests' screens cannot be seen", reason=str(error))
                    logged = str(error)
                await trio.sleep(RETRY)
                continue
            except Exception:
                _log.exception("no X server: connecting failed; the guests' screens cannot be seen")
                await trio.sleep(RETRY)
                continue
            logged = ""
            _log.info("X server connected")
            try:
                await self._use(server)
            except Exception:  # an error in displbe costs this connection; the guests go on
                _log.exception(
                    "X server disconnected after an error: the guests' screens cannot be seen until it is back"
                )
                await trio.sleep(RETRY)

    async def _use(self, server: Server) -> None:
        """Show the outputs on this server until it is lost."""
        if self.desktop.settings.inhibit_idle and not server.screen_saver.is_offered:
            _log.warning("option without effect", option="inhibit-idle", reason=NO_SCREEN_SAVER)
        self._set_server(server)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._follow_monitors, server)
                await server.serve()
        except* ServerLost as lost:
            reason = str(first_leaf(lost))
            _log.warning("X server lost: the guests' screens cannot be seen until it is back", reason=reason)
        finally:
            self._set_server(None)
            server.close()

    async def _follow_monitors(self, server: Server) -> None:
        """Read the monitors again whenever they may have changed. That blocks until the server has answered, so it is done in a thread."""
        while True:
            await server.monitors_changed.wait()
            await trio.sleep(SETTLE)
            server.monitors_changed = trio.Event()
            try:
                other = await run_in_thread(
                    monitors_of, self.desktop.settings.display, server.screen.root, abandon_on_cancel=True
                )
            except Exception as error:  # the windows stay where they are
                _say(
                    "monitors not read: windows stay where they are, and it is tried again",
                    shortage(error) or repr(error),
                )
                server.monitors_changed.set()
                await trio.sleep(RETRY)
                continue
            server.monitors = other
            self._tell(Painter.follow_monitors)

    def _set_server(self, server: Server | None) -> None:
        self.desktop.server = server
        self._tell(Painter.on_server)

    def _tell(self, what: Callable[[Painter], None]) -> None:
        for name, painter in list(self.painters.items()):
            try:
                what(painter)
            except Exception:  # the other windows must follow too
                _log.exception("a window cannot follow the X server", connector=name)

    # Windows

    def connector_added(self, connector: DeviceConnector) -> None:
        self._queue.add(connector)

    def connector_removed(self, connector: DeviceConnector) -> None:
        self._queue.remove(connector)

    def reopen(self, connector: DeviceConnector) -> None:
        self._queue.check_open(connector)
        self.painters[connector.name].reopen()

    def _open(self, connector: DeviceConnector, before: DeviceConnector | None) -> None:
        """Give a connector a window: that of the removed connector `before`, which has the same name, if there is one; or a new one."""
        if before is not None:
            self.painters[connector.name].move(connector)
            return
        painter = self.painters[connector.name] = Painter(self.desktop, connector)
        self._tasks.start_soon(painter.run)

    def _close(self, connector: DeviceConnector) -> None:
        self.painters.pop(connector.name).stop()

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        connector = self._queue.find(name, claimant.domid)
        if name in self.outputs:
            raise OutputUnavailable(f"connector {name} is taken by another device of this guest")
        painter = self.painters[connector.name]
        output = self.outputs[name] = X11Output(self.desktop, name, claimant, painter, partial(self._free, name))
        return output

    def _free(self, name: str) -> None:
        del self.outputs[name]

    def claimed(self, name: str) -> Output | None:
        return self.outputs.get(name)


def monitors_of(display: str, root: int) -> tuple[Monitor, ...]:
    """Return the monitors of a server that has RANDR, over a new connection. It blocks. Raises xcffib.XcffibException."""
    connection = xcffib.connect(display or None)
    try:
        return read_monitors(connection, root)
    finally:
        connection.disconnect()
