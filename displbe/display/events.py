"""The page-flip events of one connector: one for each accepted flip.

Linux's frontend counts the events that it gets and drops an event whose id is not the count. So an event gets its id only when it is
written. If the event page has no room for an event, the event waits, and no further flip is accepted until it is written.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

import trio

from displbe.wire.displif import encode_event
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackEventPage
from displbe.xen.port import EventChannel

from .times import FlipTimes, clock

__all__ = ["EventState", "FlipEvents"]

RETRY: Final = 0.02
"""Seconds between two looks at an event page that had no room: the frontend does not notify when it has read events."""


class EventState(enum.Enum):
    """The state of the next event."""

    NONE = "none"
    """No flip is under way; the next one may begin."""
    DUE = "due"
    """A flip is under way; its event is written when it ends."""
    DELAYED = "delayed"
    """The flip has ended, but the event page has no room for its event."""
    CLOSED = "closed"
    """The connection has ended; the event page must not be used any more."""


# Looked up once, for the path of every flip: access to an enum's member costs more than a call in Python 3.11.
_NONE: Final = EventState.NONE
_DUE: Final = EventState.DUE


class FlipEvents:
    """The flip under way and its event. `broken` is called when the frontend's index of the event page is impossible."""

    def __init__(self, page: BackEventPage, channel: EventChannel, broken: Callable[[FrontendBroken], None]) -> None:
        self.state = EventState.NONE
        self.times = FlipTimes()
        self.delayed = 0
        """The number of events that had to wait for room."""
        self.page = page
        self.next_id = 0
        self.begun = 0.0
        """When the newest flip began, in seconds of CLOCK_MONOTONIC."""
        self._channel = channel
        self._broken = broken
        self._cookie = 0
        """The framebuffer of the delayed event."""
        self._wanted = trio.Event()

    @property
    def is_pending(self) -> bool:
        """Whether the event of an accepted flip is not written yet."""
        return self.state is EventState.DUE or self.state is EventState.DELAYED

    def begin(self) -> None:
        """Begin a flip. Raises RequestError EBUSY while the event of the previous flip is not written."""
        if self.state is not _NONE:
            raise RequestError(Errno.EBUSY, "a page flip is under way")
        self.state = _DUE
        self.begun = clock()

    def cancel(self) -> None:
        """End a flip without an event: the output has refused it."""
        if self.state is EventState.DUE:
            self.state = EventState.NONE

    def complete(self, cookie: int) -> None:
        """End the flip to this framebuffer: write its event, or delay it until there is room."""
        if self.state is _DUE and not self._write(cookie):
            self.state = EventState.DELAYED
            self.delayed += 1
            self._cookie = cookie
            self._wanted.set()

    def close(self) -> None:
        """Stop using the event page: it is about to be unmapped."""
        self.state = EventState.CLOSED

    async def run(self) -> None:
        """Write delayed events as soon as there is room, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            while self.state is EventState.DELAYED and not self._write(self._cookie):
                await trio.sleep(RETRY)

    def _write(self, cookie: int) -> bool:
        """Write the event. Return False when there is no room for it."""
        try:
            if not self.page.space():
                return False
        except FrontendBroken as broken:
            self._broken(broken)
            return True
        self.page.put(encode_event(self.next_id, cookie))
        self.next_id += 1
        self.state = _NONE
        self._channel.notify()
        self.times.add(self.begun)
        return True
