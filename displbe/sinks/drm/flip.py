"""The flip that a guest waits for: at most one to an output, and over exactly once, whatever happens to the screen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

__all__ = ["LATE", "SERIALS", "STILL", "Flip"]

SERIALS: Final = 1 << 40
"""An event's user data is a flip's serial number; each output counts from a multiple of this, its key."""
LATE: Final = 0.5
"""Seconds after which a flip whose event does not come is completed all the same: the guest waits 3.1 s."""
STILL: Final = 0.25
"""Seconds without a flip until a frame on the screen is refreshed for what may have been drawn into it: a commit of ours may hold the
guest's next flip back by a refresh, so that one which is late would be late for ever.
"""


class Flip:
    """`done` is called with the token of each flip that is over; `start_soon` starts a task."""

    def __init__(
        self, key: int, done: Callable[[int], None], start_soon: Callable[[Callable[[int], Awaitable[None]], int], None]
    ) -> None:
        self.serial = key * SERIALS
        """Of the last flip."""
        self.shown = 0
        """Flips that the card has shown."""
        self.late = 0
        """Flips that were completed because the card did not say so in time."""
        self.period = 1 / 60
        """Seconds of a refresh, while there is a screen and when there is none."""
        self._done = done
        self._start_soon = start_soon
        self._token: int | None = None
        self._since = 0.0

    @property
    def count(self) -> int:
        """Flips so far."""
        return self.serial % SERIALS

    @property
    def waiting(self) -> bool:
        """One is under way."""
        return self._token is not None

    def begin(self, token: int) -> int:
        """The guest flips: the flip's serial number."""
        self._token = token
        self._since = trio.current_time()
        return self.again()

    def again(self) -> int:
        """A new serial number for the flip under way, if any: events of earlier commits do not end it."""
        self.serial += 1
        return self.serial

    def complete(self) -> None:
        """The flip under way, if any, is over."""
        token, self._token = self._token, None
        if token is not None:
            self._done(token)

    def complete_by_timer(self) -> None:
        """The flip under way, if any, is over at the next refresh that there would be."""
        if self._token is not None:
            self._start_soon(self._complete_later, self.serial)

    async def _complete_later(self, serial: int) -> None:
        now = trio.current_time()
        await trio.sleep(self.period - now % self.period)
        if self.serial == serial:
            self.complete()

    def on_event(self, serial: int) -> None:
        """The card says that a flip is on the screen."""
        if serial == self.serial:
            self.shown += 1
            self.complete()

    def check_late(self, now: float) -> bool:
        """Complete a flip whose event does not come."""
        if self._token is None or now - self._since <= LATE:
            return False
        self.late += 1
        self.complete()
        return True
