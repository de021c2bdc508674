"""One connector of a device: it dispatches each request, and reports the connector's status.

`serve` is the table of contents of the protocol. The rings are in `requests.py` and `events.py`, the screen is in `screen.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from displbe.backend.quota import Quota
from displbe.ops import status
from displbe.ops.text import escape
from displbe.sinks.base import SinkError
from displbe.wire.displif import (
    DbufCreate,
    DbufDestroy,
    FbAttach,
    FbDetach,
    GetEdid,
    PageFlip,
    Request,
    SetConfig,
    UnknownRequest,
)
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing
from displbe.xen.port import EventChannel

from .buffers import Buffers
from .events import FlipEvents
from .requests import RequestRing, RingState, SlowRequest
from .screen import Screen
from .steady import PumpedConnector
from .times import clock

__all__ = ["Connector"]


class Connector:
    """Connector `index` of a device.

    `edid` serves GET_EDID and returns the size in bytes. `broken` is called with the reason when the device has to end.
    """

    def __init__(
        self,
        index: int,
        screen: Screen,
        buffers: Buffers,
        events: FlipEvents,
        edid: Callable[[GetEdid], Awaitable[int]],
        quota: Quota,
        log: Any,
        broken: Callable[[FrontendBroken], None],
    ) -> None:
        self.index = index
        self.screen = screen
        self.requests = RequestRing(self.serve, self._refuse, broken, quota, log)
        self._buffers = buffers
        self._events = events
        self._edid = edid
        self._log = log
        self._pumped: PumpedConnector | None = None
        self._refusals: Counter[tuple[str, str]] = Counter()
        self._error = ""
        """The request that was refused last, and the reason."""
        self._error_at = 0.0
        """When it was refused, in seconds of CLOCK_MONOTONIC."""

    @property
    def name(self) -> str:
        """The name of its output."""
        return self.screen.output.name

    @property
    def is_served(self) -> bool:
        """Whether its requests are served."""
        return self.requests.state is not RingState.STOPPED

    @property
    def is_pumped(self) -> bool:
        """Whether the pump serves its flips now."""
        return self._pumped is not None and self._pumped.is_given

    def start(self, ring: BackControlRing, channel: EventChannel, pumped: PumpedConnector | None = None) -> None:
        """Serve the requests of this ring from now on. `pumped`: the pump serves steady flips."""
        self.requests.start(ring, channel)
        self.requests.pumped = self._pumped = pumped
        if pumped is not None:
            self.screen.peek = pumped.peek

    async def run(self) -> None:
        """Serve slow requests and write delayed events, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._events.run)
            await self.requests.run()

    def stop(self) -> None:
        """Stop using the shared pages: the connection has ended."""
        if self._pumped is not None:
            self._pumped.close()
        self.requests.stop()
        self._events.close()

    def forget(self) -> None:
        """Free the records of a connection that has ended. A guest may connect and leave much faster than memory is collected."""
        self.requests.trace.close()
        self._events.times.close()

    # Requests

    def serve(self, request: Request) -> int | SlowRequest:
        """Serve a request and return 0, or return the function that serves it if it is slow. Raises RequestError, SinkError.

        The guest sends the requests for buffers and framebuffers over the ring of connector 0 (displif.h).
        """
        match request:
            case PageFlip():
                return 0 if self.screen.flip(request.fb_cookie) else partial(self.screen.reshape, request.fb_cookie)
            case SetConfig():
                return partial(self.screen.configure, request)
            case GetEdid():
                return partial(self._edid, request)
            case DbufCreate() | DbufDestroy() | FbAttach() | FbDetach() if self.index:
                raise RequestError(Errno.EINVAL, "this request belongs on the ring of connector 0")
            case DbufCreate():
                return partial(self._buffers.create, request)
            case DbufDestroy():
                return partial(self._buffers.destroy, request)
            case FbAttach():
                return partial(self._buffers.attach, request)
            case FbDetach():
                return partial(self._buffers.detach, request)
            case UnknownRequest():
                raise RequestError(Errno.EOPNOTSUPP, "no such operation")

    def _refuse(self, request: Request, error: RequestError | SinkError) -> int:
        """Count and log a refused request. Return its status."""
        name = type(request).__name__
        self._refusals[name, error.code.name] += 1
        self._error = f"{name}: {error} ({error.code.name})"
        self._error_at = clock()
        self._log.warning(
            "request refused", request=name, operation=request.operation, error=error.code.name, reason=str(error)
        )
        return -error.code

    # The operator

    def peek(self) -> None:
        """Bring the counters and the trace up to date, which stand still while the pump serves the flips."""
        if self._pumped is not None:
            self._pumped.peek()

    def _trouble(self) -> str:
        """Return the reason for the last refused request, or for one that is not answered yet; empty if there is none."""
        if self.index == 0 and self._buffers.overdue:
            return "DbufDestroy: not answered while the compositor or the card still uses the buffer"
        return self._error

    def _framebuffers(self) -> tuple[status.Framebuffers, ...]:
        attached = (framebuffer.sink_buffers[self.index] for framebuffer in self._buffers.framebuffers.values())
        ways = Counter((each.path, escape(each.reason)) for each in attached if each is not None)
        return tuple(status.Framebuffers(*way, count) for way, count in sorted(ways.items()))

    def status(self) -> status.ConnectorStatus:
        """Return the connector's status."""
        self.peek()
        requests, screen, events = self.requests, self.screen, self._events
        output = screen.output
        return status.ConnectorStatus(
            index=self.index,
            output=escape(output.name),
            resolution="{}x{}".format(*screen.resolution),
            shown=screen.shown(),
            path=output.path,
            reason=escape(output.reason),
            framebuffers=self._framebuffers(),
            blanked=screen.is_blanked,
            flips=events.times.status(pending=events.is_pending),
            requests=requests.trace.count,
            refused=self._refusals.total(),
            refusals=tuple(status.Refusal(*kind, count) for kind, count in self._refusals.items()),
            error=escape(self._trouble()),
            error_age=clock() - self._error_at if self._error else None,
            rescued=requests.rescued,
            spurious=requests.spurious.total,
            throttled=requests.throttled + screen.throttled,
            late_events=events.delayed,
        )
