"""Hands a connector's steady flips to the pump, and takes the connector back for everything else.

A connector is in its steady state when its ring is empty, its screen is on, and nothing of it changes. Then the pump (displbe/pump) serves
its flips, and Python changes nothing of it. Before Python does anything with the connector, it takes it back: `take` returns when the pump
has finished the flip that it serves at the moment, and brings everything up to date here. `peek` only updates the counters.

The pump behaves as the Python code does that serves flips otherwise: requests.py, screen.py, events.py and sinks/flip.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from displbe.pump.library import ffi
from displbe.pump.native import Bucket, Pump
from displbe.sinks.base import SteadyFlips, SteadyScreen
from displbe.wire.ring import BackControlRing
from displbe.xen.port import EventChannel, Page

from .events import EventState, FlipEvents
from .requests import RequestRing, RingState
from .screen import Screen
from .times import clock

__all__ = ["PumpedConnector"]


class PumpedConnector:
    """A connector that the pump may serve: its ring, its event page, and its screen. It begins as Python's.

    `pages` and `channels` are those of the ring and of the events. They outlive this object's `close`. `taken` is called when Python is the
    owner again.
    """

    def __init__(
        self,
        pump: Pump,
        bucket: Bucket,
        requests: RequestRing,
        ring: BackControlRing,
        screen: Screen,
        events: FlipEvents,
        pages: tuple[Page, Page],
        channels: tuple[EventChannel, EventChannel],
        taken: Callable[[], None],
    ) -> None:
        self.is_given = False
        """Whether the pump owns the connector."""
        self._pump = pump
        self._taken = taken
        self._requests = requests
        self._ring = ring
        self._screen = screen
        self._events = events
        self._struct = struct = pump.add(self.take, self._still)
        self._copy = ffi.new("struct pump_connector *")
        struct.ring, struct.events = (ffi.cast("uint8_t *", page.address) for page in pages)
        struct.evtchn, struct.port, struct.event_port = channels[0].fd, channels[0].port, channels[1].port
        struct.bucket = bucket.struct
        times = events.times
        arrays = ("uint8_t[]", requests.trace.memory), ("double[]", times.shown), ("double[]", times.took)
        self._kept: list[Any] = [bucket, *(ffi.from_buffer(kind, memory) for kind, memory in arrays)]
        """What the struct refers to."""
        struct.trace, struct.shown_at, struct.took = self._kept[1:]
        self._kept.append(ffi.from_buffer("uint64_t[]", times.buckets))
        struct.buckets = self._kept[-1]
        screen.output.interrupt = self.take
        screen.output.flipped = self._flipped

    def close(self) -> None:
        """Take the connector back for good."""
        self.take()
        self._pump.remove(self._struct)
        self._screen.output.interrupt = lambda: None
        self._kept.clear()

    def _flipped(self, token: int) -> None:
        """End a flip that Python has served. Copied frames are steady only now: before, one was being copied."""
        self._events.complete(token)
        if self._requests.state is RingState.IDLE and not self._requests.not_before:
            self.give()

    # Giving and taking

    def give(self) -> None:
        """Make the pump the owner if the connector is in its steady state."""
        if self.is_given or self._events.state not in (EventState.NONE, EventState.DUE):
            return
        req_cons, rsp_prod = self._ring.indices
        steady = self._screen.steady() if req_cons == rsp_prod else None
        if steady is None:
            return
        self._fill(steady)
        self._screen.output.hand_over()
        self.is_given = True
        if not self._pump.give(self._struct):
            self._return_to_python()

    def _fill(self, steady: SteadyScreen) -> None:
        """Bring the pump's view of the connector up to date."""
        struct, library, events, times = self._struct, self._pump.library, self._events, self._events.times
        struct.card, struct.serial, struct.token = steady.card, steady.serial, steady.token
        struct.late, struct.still = steady.late, steady.still
        struct.atomic = ffi.cast("struct pump_atomic *", steady.atomic)
        struct.fb_value = ffi.cast("uint64_t *", steady.value)
        struct.copier = steady.copier.handle if steady.copier is not None else ffi.NULL
        table = [(cookie, fb, 0, ffi.cast("uint8_t *", pixels)) for cookie, (fb, pixels) in steady.framebuffers.items()]
        self._table = ffi.new("struct pump_framebuffer[]", table)
        struct.framebuffers, struct.framebuffer_count = self._table, len(table)
        struct.state = library.PUMP_PENDING if events.is_pending else library.PUMP_IDLE
        struct.req_cons, struct.rsp_prod = self._ring.indices
        struct.in_prod, struct.next_id, struct.begun = events.page.in_prod, events.next_id, events.begun
        struct.traced, struct.counted, struct.total = self._requests.trace.count, times.count, times.total
        struct.flips = struct.shown = struct.told = struct.latest = 0

    def take(self) -> None:
        """Make Python the owner."""
        if self.is_given:
            self._pump.take(self._struct)
            self._return_to_python()
            self._taken()

    def _still(self) -> None:
        """Make Python the owner of a connector whose guest has not flipped for a while: perhaps it has, and its notification was lost."""
        self.take()
        self._requests.rescue()

    def _return_to_python(self) -> None:
        struct = self._struct
        self.is_given = False
        self._update(struct)
        newest = self._screen.flipped_to(struct.latest) if struct.latest else None
        token = struct.token if self._is_pending(struct) else None
        age = clock() - struct.begun
        self._screen.output.take_back(SteadyFlips(struct.serial, struct.shown, token, age, newest))

    def peek(self) -> None:
        """Bring the counters and indices here up to date; the owner stays."""
        if self.is_given:
            self._pump.peek(self._struct, self._copy)
            self._update(self._copy)
            if self._copy.latest:
                self._screen.flipped_to(self._copy.latest)

    def _is_pending(self, struct: Any) -> bool:
        return bool(struct.state == self._pump.library.PUMP_PENDING)

    def _update(self, struct: Any) -> None:
        """Take over what the pump has counted."""
        requests, events, times = self._requests, self._events, self._events.times
        self._ring.indices = struct.req_cons, struct.rsp_prod
        events.page.in_prod, events.next_id, events.begun = struct.in_prod, struct.next_id, struct.begun
        events.state = EventState.DUE if self._is_pending(struct) else EventState.NONE
        requests.trace.count, times.count, times.total = struct.traced, struct.counted, struct.total
        if struct.flips:
            requests.spurious.reset()
