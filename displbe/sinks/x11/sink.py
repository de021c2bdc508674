"""The X server of a desktop, with a window for each output: connected again when it is lost, while the guests go on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import structlog
import trio

from displbe.sinks.base import NOBODY, Claimant, Output, OutputUnavailable, Sink
from displbe.sinks.seat import Seats

from .output import X11Output
from .server import Lost, Refused, Server
from .settings import X11Settings

__all__ = ["X11Sink"]

RETRY: Final = 1.0
"""Seconds between two attempts to reach the server."""
_log = structlog.get_logger("displbe.x11")


class X11Sink(Sink):
    """Windows on a desktop."""

    wants_dmabuf = False

    def __init__(self, settings: X11Settings) -> None:
        self.settings = settings
        self.seats: Seats = Seats()
        self.server: Server | None = None
        """None: there is none, or none yet."""
        self.outputs: dict[str, X11Output] = {}
        self._nursery: trio.Nursery | None = None
        self._tick_wanted = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._tick)
            for output in self.outputs.values():
                nursery.start_soon(output.run)
            task_status.started()
            try:
                await self._keep_connected()
            finally:
                self._nursery = None

    def abilities(self) -> Mapping[str, str]:
        return {"X server": "reached" if self.server is not None else "not reached"}

    async def _keep_connected(self) -> None:
        said = ""
        while True:
            try:
                # It may hang for as long as the server does; nobody waits for the thread then.
                server = await trio.to_thread.run_sync(Server, self.settings.display, abandon_on_cancel=True)
            except Refused as error:
                if str(error) != said:
                    _log.warning("no windows", reason=str(error))
                    said = str(error)
                await trio.sleep(RETRY)
                continue
            said = ""
            _log.info("X server found")
            await self._use(server)

    async def _use(self, server: Server) -> None:
        self.server = server
        for output in self.outputs.values():
            output.wake()
        try:
            await server.serve()
        except Lost as error:
            _log.warning("X server lost", reason=str(error))
        finally:
            self.server = None
            for output in self.outputs.values():
                output.lose()
            server.close()

    # The refresh: a timer, since a window has none

    def tick_soon(self) -> None:
        """A flip waits for the next refresh."""
        self._tick_wanted.set()

    async def _tick(self) -> None:
        period = 1 / self.settings.refresh
        while True:
            await self._tick_wanted.wait()
            self._tick_wanted = trio.Event()
            now = trio.current_time()
            await trio.sleep_until((math.floor(now / period) + 1) * period)
            for output in list(self.outputs.values()):
                if output.tick():
                    self._tick_wanted.set()

    # Outputs

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> Output:
        if name in self.outputs:
            raise OutputUnavailable(f"output {name} is taken by another guest")
        output = self.outputs[name] = X11Output(self, name, claimant)
        if self._nursery is not None:
            self._nursery.start_soon(output.run)
        return output

    def claimed(self, name: str) -> Output | None:
        return self.outputs.get(name)
