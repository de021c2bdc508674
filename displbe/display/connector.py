"""One connector: its control ring served, its output switched and flipped.

`kicked` is called, not woken, when the guest has notified. It serves fast requests there and then, within a budget; a slow one (it
maps, imports, sets a mode, waits) goes to the connector's own task, and the ring rests until it is answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import trio

from displbe.sinks.base import Output, Part, SinkError
from displbe.wire.displif import (
    DbufCreate,
    DbufDestroy,
    FbAttach,
    FbDetach,
    PageFlip,
    Request,
    SetConfig,
    UnknownRequest,
    decode_request,
    encode_response,
)
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing, BackEventPage
from displbe.xen.port import EventChannel

from .buffers import Buffers, Framebuffer
from .flips import Flips

__all__ = ["Connector"]

BUDGET: Final = 8
"""Requests served in one turn, before the others have theirs."""
STUCK_RETRY: Final = 0.02
"""Seconds between looks at an event page that had no room: its frontend never says that it has read."""

GENERIC: Final = (DbufCreate, DbufDestroy, FbAttach, FbDetach)
"""displif.h: requests on buffers and framebuffers are sent over the ring of connector 0."""


def _ignore(token: int) -> None:
    """A flip of a connection that is over."""


class Connector:
    """Connector `index` of a device. `broken` is told what ends the device."""

    def __init__(
        self, index: int, output: Output, buffers: Buffers, log: Any, broken: Callable[[FrontendBroken], None]
    ) -> None:
        self.output = output
        self._index = index
        self._buffers = buffers
        self._log = log
        self._broken = broken
        self._shown: Framebuffer | None = None
        self._resting = True
        self._slow_in, self._slow_out = trio.open_memory_channel[Request](1)
        self._stuck = trio.Event()
        self.served = 0

    def start(
        self, ring: BackControlRing, channel: EventChannel, events: BackEventPage, event_channel: EventChannel
    ) -> None:
        """Serve what is in the ring from now on."""
        self._ring = ring
        self._channel = channel
        self._flips = Flips(events, event_channel, self._late, self._broken)
        self.output.flipped = self._flips.complete
        self._resting = False

    def stop(self) -> None:
        """Touch the shared pages no more: they are about to go."""
        self._resting = True
        self.output.flipped = _ignore

    def _late(self) -> None:
        """The event page has no room."""
        self._stuck.set()

    def kicked(self) -> bool:
        """The guest has notified: serve. True when the budget is spent and requests may be left."""
        if self._resting:
            return False
        try:
            return self._serve()
        except FrontendBroken as broken:
            self._resting = True
            self._broken(broken)
            return False

    def _serve(self) -> bool:
        ring = self._ring
        for _ in range(BUDGET):
            slot = ring.take()
            if slot is None:
                if ring.final_check():
                    continue
                # After the work: a storm of notifications costs one turn at a time.
                self._channel.rearm()
                return False
            request = decode_request(slot)
            if isinstance(request, PageFlip):
                self._respond(request, self._flip(request))
            elif isinstance(request, UnknownRequest) or type(request) not in _SLOW:
                self._respond(request, -self._refuse(request, RequestError(Errno.EOPNOTSUPP, "no such operation")))
            else:
                self._resting = True
                self._slow_in.send_nowait(request)
                return False
        return True

    def _respond(self, request: Request, status: int) -> None:
        self.served += 1
        if self._ring.respond(encode_response(request.id, request.operation, status)):
            self._channel.notify()

    def _refuse(self, request: Request, error: RequestError | SinkError) -> Errno:
        self._log.warning(
            "request refused",
            request=type(request).__name__,
            operation=request.operation,
            error=error.code.name,
            reason=str(error),
        )
        return error.code

    def _flip(self, request: PageFlip) -> int:
        """PG_FLIP: 0, or the negative error number."""
        try:
            framebuffer = self._buffers.framebuffers.get(request.fb_cookie)
            if framebuffer is None:
                raise RequestError(Errno.ENOENT, "no such framebuffer")
            shown = self._shown
            if shown is None:
                raise RequestError(Errno.EINVAL, "the connector is off")
            if framebuffer is not shown and framebuffer.geometry != shown.geometry:
                raise RequestError(Errno.EINVAL, "the framebuffer has another shape than the one shown")
            sink_buffer = framebuffer.on[self._index]
            if sink_buffer is None:
                raise RequestError(Errno.EINVAL, "the output cannot show this framebuffer")
            self._flips.check()
            self._flips.pending = True
            try:
                self.output.flip(sink_buffer, request.fb_cookie)
            except SinkError:
                self._flips.pending = False
                raise
        except (RequestError, SinkError) as error:
            return -self._refuse(request, error)
        self._shown = framebuffer
        return 0

    async def run(self) -> None:
        """Serve slow requests, and write events that waited for room, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver_late)
            async for request in self._slow_out:
                status = await self._slow(request)
                self._respond(request, status)
                self._resting = False
                while self.kicked():
                    await trio.lowlevel.checkpoint()

    async def _slow(self, request: Request) -> int:
        try:
            if self._index and isinstance(request, GENERIC):
                raise RequestError(Errno.EINVAL, "this request belongs on the ring of connector 0")
            await _SLOW[type(request)](self, request)
        except (RequestError, SinkError) as error:
            return -self._refuse(request, error)
        return 0

    async def _deliver_late(self) -> None:
        while True:
            await self._stuck.wait()
            self._stuck = trio.Event()
            while not self._flips.deliver():
                await trio.sleep(STUCK_RETRY)

    async def _create(self, request: DbufCreate) -> None:
        await self._buffers.create(request)

    async def _destroy(self, request: DbufDestroy) -> None:
        await self._buffers.destroy(request)

    async def _attach(self, request: FbAttach) -> None:
        await self._buffers.attach(request)

    async def _detach(self, request: FbDetach) -> None:
        await self._buffers.detach(request)

    async def _set_config(self, request: SetConfig) -> None:
        """SET_CONFIG: show a framebuffer, or nothing. Raises RequestError, SinkError."""
        if request.fb_cookie == 0:
            self._shown = None
            await self.output.disable()
            return
        framebuffer = self._buffers.framebuffers.get(request.fb_cookie)
        if framebuffer is None:
            raise RequestError(Errno.ENOENT, "no such framebuffer")
        shape = framebuffer.geometry
        part = Part(request.x, request.y, request.width, request.height)
        if not (1 <= part.width <= shape.width - part.x and 1 <= part.height <= shape.height - part.y):
            raise RequestError(Errno.EINVAL, f"{part} lies outside a framebuffer of {shape.width}x{shape.height}")
        sink_buffer = framebuffer.on[self._index]
        if sink_buffer is None:
            raise RequestError(Errno.EINVAL, "the output cannot show this framebuffer")
        await self.output.enable(sink_buffer, part)
        self._shown = framebuffer


_SLOW: Final = cast(
    "dict[type[Any], Callable[[Connector, Any], Awaitable[None]]]",
    {
        DbufCreate: Connector._create,
        DbufDestroy: Connector._destroy,
        FbAttach: Connector._attach,
        FbDetach: Connector._detach,
        SetConfig: Connector._set_config,
    },
)
