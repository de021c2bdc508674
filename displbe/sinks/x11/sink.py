"""The X11 sink: a window for each output on the desktop of an X server. When the server is lost, the guests go on, and the sink tries to
connect again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

import structlog
import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats
from displbe.sinks.tasks import Tasks
from displbe.threads import run_in_thread

from .desktop import Desktop
from .output import X11Output
from .server import Server, ServerLost, ServerUnreachable
from .settings import X11Settings

__all__ = ["X11Sink"]

RETRY: Final = 1.0
"""Seconds between two attempts to reach the server."""
_log = structlog.get_logger("displbe.x11")


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
        return {"X server": "reached" if self.desktop.server is not None else "not reached"}

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
        self._set_server(server)
        try:
            await server.serve()
        except ServerLost as error:
            _log.warning("X server lost: the guests' screens cannot be seen until it is back", reason=str(error))
        finally:
            self._set_server(None)
            server.close()

    def _set_server(self, server: Server | None) -> None:
        self.desktop.server = server
        for output in self.outputs.values():
            try:
                output.on_server()
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
