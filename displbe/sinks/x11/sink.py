"""The X11 sink: a window for each output on the desktop of an X server. When the server is lost, the guests go on, and the sink tries to
connect again.
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
from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats
from displbe.sinks.tasks import Tasks
from displbe.threads import run_in_thread
from displbe.wire.errors import first_leaf

from .desktop import Desktop
from .monitors import Monitor, read_monitors
from .output import X11Output
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
        self.outputs: dict[str, X11Output] = {}
        self._tasks = Tasks(_log)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.desktop.clock.run)
            await nursery.start(self._tasks.run)
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
            self._tell(X11Output.on_monitors)

    def _set_server(self, server: Server | None) -> None:
        self.desktop.server = server
        self._tell(X11Output.on_server)

    def _tell(self, what: Callable[[X11Output], None]) -> None:
        for output in self.outputs.values():
            try:
                what(output)
            except Exception:  # the other outputs must follow too
                _log.exception("an output cannot follow the X server", connector=output.name)

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if name in self.outputs:
            raise OutputUnavailable(f"output {name} is taken by another guest")
        output = self.outputs[name] = X11Output(self.desktop, name, claimant, partial(self._free, name))
        self._tasks.start_soon(output.run)
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
