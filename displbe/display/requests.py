"""The request ring of one connector: takes requests, has them served, writes the responses.

The task that reads event channels calls `notified` when the guest has notified. `notified` serves fast requests at once, within a budget.
A slow request (one that maps, imports, sets a mode, or waits) is served by the ring's own task. The ring takes no further request until
that one is answered.

After spurious events, and when its guest sends too many requests, a ring has a `not_before`: it is not looked at before that time, and
its port stays masked until then.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias

import trio

from displbe.backend.quota import Quota
from displbe.backend.spurious_events import SpuriousEvents
from displbe.shortage import is_shortage, shortage
from displbe.sinks.base import SinkError
from displbe.wire.displif import Request, decode_request, encode_response
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing
from displbe.xen.port import EventChannel

from .trace import Trace

__all__ = ["Owner", "RequestRing", "RingState", "SlowRequest"]

SLOW_COST: Final = 8
"""The number of requests that a slow request counts as in the guest's limit."""
THROTTLED: Final = 0.01
"""Minimum pause of a throttled ring, in seconds; waking up for each request costs more than it saves."""

SlowRequest: TypeAlias = Callable[[], Awaitable[int | None]]
"""Serves a slow request. Returns the size of the EDID that was written, in bytes, or None. Raises RequestError, SinkError."""
_NOW: Final = 0.0


class RingState(enum.Enum):
    """Whether requests are served."""

    STOPPED = "stopped"
    """Requests are not served: the ring is not started, the connection has ended, or the frontend broke the protocol."""
    IDLE = "idle"
    """Requests are served when the guest notifies, but not before `not_before`."""
    BUSY = "busy"
    """A slow request is under way in the ring's task. The requests behind it wait until it is answered."""


# Looked up once, for the path of every flip: access to an enum's member costs more than a call in Python 3.11.
_IDLE: Final = RingState.IDLE


class Owner(Protocol):
    """What may serve the ring's steady flips in Python's place (display/steady.py)."""

    def take(self) -> None:
        """Make Python the owner of the connector. Does nothing if it is."""

    def give(self) -> None:
        """Make the pump the owner of the connector if it is in its steady state now. Does nothing if it is not."""

    def peek(self) -> None:
        """Update Python's counters and indices, which stand still while the pump is the owner."""


class RequestRing:
    """One connector's request ring.

    `serve` serves a request. It returns the status of the response, 0 or a negative error number; or, for a slow request, a SlowRequest
    that does the work. It raises RequestError or SinkError to refuse the request; `refuse` turns the exception into the status. `broken`
    is called with the reason when the device has to end.

    It has seventeen attributes: three of them are counters for the operator.
    """

    def __init__(
        self,
        serve: Callable[[Request], int | SlowRequest],
        refuse: Callable[[Request, RequestError | SinkError], int],
        broken: Callable[[FrontendBroken], None],
        quota: Quota,
        log: Any,
    ) -> None:
        self.state = RingState.STOPPED
        self.not_before = _NOW
        """The ring is not looked at before this time, in seconds of trio's clock. 0: it is looked at when the guest notifies."""
        self.trace = Trace()
        self.spurious = SpuriousEvents()
        self.pumped: Owner | None = None
        """What serves steady flips; None: Python does."""
        self.rescued = 0
        """The number of requests that were found without a notification."""
        self.throttled = 0.0
        """Seconds for which the ring was not looked at because its guest exceeded its request rate."""
        self._serve = serve
        self._refuse = refuse
        self._broken = broken
        self._quota = quota
        self._log = log
        self._slow: tuple[Request, SlowRequest] | None = None
        """The request under way while the ring is BUSY."""
        self._wanted = trio.Event()
        """Set when the ring's task has something to do: a slow request, or a look at the ring at `not_before`."""
        self._seen_waiting: int | None = None
        """The index of the request that waited at the last `rescue`."""

    def start(self, ring: BackControlRing, channel: EventChannel) -> None:
        """Serve the requests of this ring from now on."""
        self._ring = ring
        self._channel = channel
        self.state = RingState.IDLE

    def stop(self) -> None:
        """Stop using the ring: it is about to be unmapped."""
        self.state = RingState.STOPPED

    def notified(self) -> bool:
        """Serve requests after a notification. Return True when the budget is spent and requests may be left."""
        return self._look(notified=True)

    def look(self) -> bool:
        """Serve requests without a notification. Return True when the budget is spent and requests may be left."""
        return self._look(notified=False)

    def rescue(self) -> bool:
        """Find a request whose notification was lost: it also waited at the last call, though nothing delays the ring.

        Return whether a request waits that did not wait at the last call.
        """
        if self.state is not RingState.IDLE or self.not_before:
            self._seen_waiting = None
            return False
        if self.pumped is not None:
            self.pumped.peek()
        waiting = self._ring.next_waiting()
        if waiting is not None and waiting == self._seen_waiting:
            self.rescued += 1
            self._log.error("a request waited without a notification", rescued=self.rescued)
            self._look_later(0.0)
        is_new = waiting is not None and waiting != self._seen_waiting
        self._seen_waiting = waiting
        return is_new

    async def run(self) -> None:
        """Serve slow requests, and look at the ring when `not_before` has come, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if self._slow is not None:
                await self._finish(*self._slow)
            if self.not_before:
                await trio.sleep_until(self.not_before)
                self.not_before = _NOW
            while self.look():
                await trio.lowlevel.checkpoint()

    async def _finish(self, request: Request, slow: SlowRequest) -> None:
        """Serve a slow request and write its response."""
        status = edid_size = 0
        try:
            edid_size = await slow() or 0
        except (RequestError, SinkError) as error:
            status = self._refuse(request, error)
        except (OSError, MemoryError) as error:
            status = self._refuse(request, _out_of(error))
        self._slow = None
        self._respond(request, status, edid_size)
        self.state = RingState.IDLE

    def _look(self, *, notified: bool) -> bool:
        if self.state is not _IDLE or self.not_before:
            return False
        ring, quota, pumped = self._ring, self._quota, self.pumped
        if pumped is not None:
            pumped.take()
        try:
            for turn in range(quota.limits.requests_per_turn):
                slot = ring.take()
                if slot is None:
                    if ring.final_check():
                        continue
                    # Each spurious event costs one turn. A flood of them delays only its own ring.
                    if notified and turn == 0 and (pause := self.spurious.add()):
                        self._look_later(pause)
                    else:
                        if pumped is not None:
                            pumped.give()
                        self._channel.rearm()
                    return False
                if self.spurious.in_a_row:
                    self.spurious.reset()
                self.trace.request(slot)
                request = decode_request(slot)
                try:
                    answer = self._serve(request)
                except (RequestError, SinkError) as error:
                    answer = self._refuse(request, error)
                except (OSError, MemoryError) as error:
                    answer = self._refuse(request, _out_of(error))
                if isinstance(answer, int):
                    self.trace.answer(answer, 0)
                    if ring.respond(encode_response(request.id, request.operation, answer, 0)):
                        self._channel.notify()
                    wait = quota.requests.take()
                    if not wait:
                        continue
                else:
                    self.state = RingState.BUSY
                    self._slow = request, answer
                    self._wanted.set()
                    wait = quota.requests.take(SLOW_COST)
                if wait:
                    self._throttle(wait)
                return False
        except FrontendBroken as broken:
            self.state = RingState.STOPPED
            self._broken(broken)
            return False
        except Exception as error:  # an error in displbe ends this device, never the task that serves all rings
            self._log.exception("request failed")
            self.state = RingState.STOPPED
            self._broken(FrontendBroken(f"internal error: {type(error).__name__}"))
            return False
        return True

    def _throttle(self, wait: float) -> None:
        """Delay the next look: the guest has sent more requests than its limit allows."""
        pause = max(wait, THROTTLED)
        self.throttled += pause
        self._look_later(pause)

    def _look_later(self, seconds: float) -> None:
        """Do not look at the ring for `seconds`, even if notified. The ring's task looks at it then. The port stays masked."""
        self.not_before = trio.current_time() + seconds
        self._wanted.set()

    def _respond(self, request: Request, status: int, edid_size: int) -> None:
        self.trace.answer(status, edid_size)
        if self._ring.respond(encode_response(request.id, request.operation, status, edid_size)):
            self._channel.notify()


def _out_of(error: OSError | MemoryError) -> RequestError:
    """Return the refusal for a request for which there are no more files, threads or memory. Raises any other error."""
    if not is_shortage(error):
        raise error
    return RequestError(Errno.ENOMEM, shortage(error))
