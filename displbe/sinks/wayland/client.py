"""One guest's connection to the compositor, made again whenever it is lost.

A guest's surfaces share a connection, and no two guests do: what a compositor finds wrong costs only the guest that it came from.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

from displbe.sinks.base import Claimant, SinkError
from displbe.sinks.seat import Seats

from .buffers import WaylandBuffer, offer
from .conn import Connection, Lost, Proxy, connect
from .output import WaylandOutput
from .session import Session
from .settings import WaylandSettings

__all__ = ["Client", "Dmabufs"]

SEARCH: Final = 0.5
"""Seconds between looks for the compositor's socket."""
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
"""Seconds until a connection that was lost is made again: the first time, and at most while each lives shortly."""
LIVES: Final = 5.0
"""Seconds after which a connection counts as good."""


class Dmabufs:
    """What the compositor has made of dma-bufs, all guests' together: kept when it goes and comes back."""

    def __init__(self) -> None:
        self.drawn = False
        """It has drawn one: when it ends over another one, that is the guest's."""
        self.refused: dict[str, str] = {}
        """Why it is given no more of them, as `buffers.offer` takes it."""


class Client:
    """A guest as a Wayland client. `path` is the compositor's socket; `opened` is `conn.connect` but in tests."""

    def __init__(
        self,
        claimant: Claimant,
        settings: WaylandSettings,
        path: str,
        seats: Seats,
        gone: Callable[[Client], None],
        dmabufs: Dmabufs,
        opened: Callable[[str], Connection] = connect,
    ) -> None:
        self.claimant = claimant
        self.settings = settings
        self.seats = seats
        self.outputs: dict[str, WaylandOutput] = {}
        self.session: Session | None = None
        self.connections = 0
        self.open = False
        """Windows may be opened."""
        self._dmabufs = dmabufs
        self._refused = ChainMap[str, str]({}, dmabufs.refused)
        self._path = path
        self._gone = gone
        self._opened = opened
        self._log: Any = structlog.get_logger("displbe.wayland").bind(domid=claimant.domid, guest=claimant.name)
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._to_start: list[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]] = []
        self._look = trio.Event()
        self._stands_still: Session | None = None
        # Held while a buffer is offered or taken back: what the compositor objects to has one cause then.
        self._offering = trio.Lock()

    @property
    def conn(self) -> Connection:
        """The connection, while there is one."""
        assert self.session is not None
        return self.session.conn

    @property
    def period(self) -> float:
        """Seconds between two refreshes of the compositor's outputs, or what they would be."""
        return self.session.screens.period if self.session is not None else 1 / 60

    # Outputs

    def claim(self, name: str, width: int, height: int) -> WaylandOutput:
        """A surface for a connector."""
        output = self.outputs[name] = WaylandOutput(self, name, width, height)
        if self.settings.refresh > 0:
            self.start_soon(output.watch, self.settings.refresh)
        return output

    def give_back(self, output: WaylandOutput) -> None:
        """An output is free again; with the last one, the connection ends."""
        del self.outputs[output.name]
        if not self.outputs:
            self._scope.cancel()
            self._gone(self)

    def start_soon(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task that lives no longer than this client, and whose failure is nobody else's."""
        if self._nursery is None:
            self._to_start.append((work, arguments))
        else:
            self._nursery.start_soon(self._alone, work, arguments)

    async def _alone(self, work: Callable[..., Awaitable[None]], arguments: tuple[Any, ...]) -> None:
        try:
            await work(*arguments)
        except Exception:
            self._log.exception("a task of the Wayland sink failed")

    def look(self) -> None:
        """There are buffers that the compositor has not been offered."""
        self._look.set()

    # The connection

    async def run(self) -> None:
        """Be connected until the last output is given back."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while self._to_start:
                    work, arguments = self._to_start.pop(0)
                    self.start_soon(work, *arguments)
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
            waiting = False
            began = trio.current_time()
            try:
                await self._serve(conn)
            except Exception:  # a mistake of ours costs this guest a connection
                self._log.exception("a connection to the compositor did not end well")
            pause = FIRST_PAUSE if trio.current_time() - began > LIVES else min(2 * pause, LAST_PAUSE)
            await trio.sleep(pause)

    async def _serve(self, conn: Connection) -> None:
        """One connection, from its beginning to its end."""
        session = Session(conn, self.settings.shell, self._changed, self._find)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(conn.run, session.appeared, session.disappeared)
                await conn.sync()  # what the globals say of themselves has come, too
                self._begin(session)
                await self._offer_all(session)
                self._open_all()
                while True:
                    await self._look.wait()
                    await self._offer_all(session)
        except* Lost as lost:
            self._log.warning("the compositor is lost", reason=str(_leaf(lost)))
        except* Exception:
            self._log.exception("a connection to the compositor failed")
        finally:
            with trio.CancelScope(shield=True):
                await self._end(session)

    def _begin(self, session: Session) -> None:
        if session.missing:
            raise Lost(f"the compositor offers no {session.missing}")
        self.session = session
        self.connections += 1
        self._log.info(
            "connected to the compositor",
            outputs=session.screens.names,
            shells=[name for name, proxy in (("xdg", session.wm_base), ("ivi", session.ivi)) if proxy is not None],
            presentation=session.presentation is not None,
            dmabuf=session.dmabuf is not None,
        )

    def _open_all(self) -> None:
        """Open the windows. What is wrong with one of them must not be taken for a buffer's fault: those have been offered."""
        self.open = True
        for output in list(self.outputs.values()):
            output.connected()

    async def _end(self, session: Session) -> None:
        session.conn.lost.set()
        session.close()
        self.session, self.open = None, False
        for output in list(self.outputs.values()):
            for buffer in output.buffers:
                if buffer.way == "dmabuf" and buffer.busy and not buffer.proved and self.settings.dmabuf == "auto":
                    # It may have been the end of a compositor that cannot draw it after all.
                    refused = self._refused if self._dmabufs.drawn else self._dmabufs.refused
                    refused["dmabuf"] = "the compositor was lost before it had shown one"
            await output.disconnected()
        await session.conn.aclose()

    async def _offer_all(self, session: Session) -> None:
        """Offer the compositor what it has not got, one at a time. Raises Lost."""
        self._look = trio.Event()
        for output in list(self.outputs.values()):
            for buffer in list(output.buffers):
                if not buffer.settled.is_set() and not buffer.closed:
                    await self._offer(session, output, buffer)

    async def _offer(self, session: Session, output: WaylandOutput, buffer: WaylandBuffer) -> None:
        async with self._offering:
            if buffer.closed:
                return
            try:
                await offer(session, buffer, self.settings, self._refused)
            except SinkError as error:
                output.refused(buffer, error)
                return
            if buffer.closed:  # by a guest that has not waited; what waits for us now is `take_back`
                await self._take_back(buffer)
                return
        output.settled(buffer)

    def proved(self, buffer: WaylandBuffer) -> None:
        """The compositor has drawn a buffer."""
        buffer.proved = True
        self._dmabufs.drawn |= buffer.way == "dmabuf"

    async def take_back(self, buffer: WaylandBuffer, patience: float) -> bool:
        """Return True when the compositor has nothing of a buffer any more, False when it does not say so for so many seconds.

        One that has not said so the last time is not waited for again until it has.
        """
        session = self.session
        with trio.move_on_after(0.0 if session is not None and session is self._stands_still else patience):
            async with self._offering:
                await self._take_back(buffer)
            self._stands_still = None
            return True
        self._drop(buffer)
        if session is not None and session is self.session and self._stands_still is not session:
            self._stands_still = session
            session.conn.ask(self._goes_on)
        return False

    def _goes_on(self) -> None:
        """A compositor that stood still has answered."""
        self._stands_still = None

    async def _take_back(self, buffer: WaylandBuffer) -> None:
        if self._drop(buffer) and self.session is not None:
            try:
                await self.session.conn.sync()
            except Lost:
                pass

    def _drop(self, buffer: WaylandBuffer) -> bool:
        """Tell the compositor that a buffer goes; False: it has nothing of it."""
        made = buffer.wl
        buffer.cold()
        if self.session is None or made is None:
            return False
        self.session.conn.destroy(made)
        self.session.conn.flush()
        return True

    def _changed(self) -> None:
        """The compositor has other outputs, or takes other formats."""
        for output in self.outputs.values():
            output.screens_changed()

    def _find(self, surface: Proxy) -> WaylandOutput | None:
        return next((o for o in self.outputs.values() if surface is not None and o.surface is surface), None)


def _leaf(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
