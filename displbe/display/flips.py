"""Page flips of one connector: one at a time, one event for each.

Linux's frontend counts the events it gets and drops one whose id is not its count. So an id is taken only when the event is written;
an event for which the page has no room waits, and no further flip is accepted until it is written.
"""

from __future__ import annotations

from collections.abc import Callable

from displbe.wire.displif import encode_event
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackEventPage
from displbe.xen.port import EventChannel

from .times import FlipTimes, clock

__all__ = ["Flips"]


class Flips:
    """The flip under way and its event. `stuck` is called when an event must wait for room, `broken` when the page is."""

    def __init__(
        self,
        page: BackEventPage,
        channel: EventChannel,
        stuck: Callable[[], None],
        broken: Callable[[FrontendBroken], None],
    ) -> None:
        self._page = page
        self._channel = channel
        self._stuck = stuck
        self._broken = broken
        self._next_id = 0
        self.pending = False
        """A flip was accepted and its event is not written yet."""
        self._unwritten: int | None = None
        self.times = FlipTimes()
        self._begun = 0.0

    def begin(self) -> None:
        """A flip is to be asked of the output. Raises RequestError EBUSY while one is under way."""
        if self.pending:
            raise RequestError(Errno.EBUSY, "a page flip is under way")
        self.pending = True
        self._begun = clock()

    def complete(self, cookie: int) -> None:
        """The flip to this framebuffer is on the screen, or can no longer be: its event."""
        self._unwritten = cookie
        if not self.deliver():
            self._stuck()

    def deliver(self) -> bool:
        """Write the event that waits, if any; False while there is no room for it."""
        if self._unwritten is None:
            return True
        try:
            if not self._page.space():
                return False
        except FrontendBroken as broken:
            self._broken(broken)
            return True
        self._page.put(encode_event(self._next_id, self._unwritten))
        self._next_id += 1
        self._unwritten = None
        self.pending = False
        self._channel.notify()
        self.times.add(self._begun)
        return True
