"""Repeats a key that is held down on a source that does not repeat keys itself.

A repetition is sent only for a key that is known to be down now. displbe, the compositor or the machine may have stood still while the
key was released, so each repetition is preceded by a question to the key's source, and repetitions that were missed are not made up for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio

from .event_queue import EventQueue

__all__ = ["AutoRepeat", "KeyRepeater"]

STALL: Final = 0.1
"""Seconds. A source that answers later than this stood still, and its answer may have overtaken a release: that repetition is left out."""


class AutoRepeat(msgspec.Struct, frozen=True):
    """Key repetition for sources that do not repeat keys themselves. `delay` is in seconds until the first repetition, `period` in seconds
    between two; a `period` of 0 means no repetition.
    """

    delay: float = 0.5
    period: float = 0.04


class KeyRepeater:
    """Repeats the key that was pressed last, as long as it is down.

    `is_down` waits until the events of the key's source up to now have been handled, and returns whether the key is down then.
    """

    def __init__(self, settings: AutoRepeat, queue: EventQueue, is_down: Callable[[int], Awaitable[bool]]) -> None:
        self._settings = settings
        self._queue = queue
        self._is_down = is_down
        self._code: int | None = None
        """The key that is repeated; None: no key is repeated."""
        self._due = 0.0
        self._started = trio.Event()
        self._asking = trio.CancelScope()
        """Cancelled when the question about the key no longer matters."""

    def start(self, code: int) -> None:
        """Repeat this key from now on, instead of any other one."""
        if self._settings.period:
            self._asking.cancel()
            self._code = code
            self._due = trio.current_time() + self._settings.delay
            self._started.set()

    def stop(self, code: int) -> None:
        """Stop if this is the key that is repeated."""
        if code == self._code:
            self._asking.cancel()
            self._code = None

    async def run(self) -> None:
        """Send the repetitions, until cancelled."""
        while True:
            if self._code is None:
                self._started = trio.Event()
                await self._started.wait()
            await trio.sleep_until(self._due)
            if self._code is not None and trio.current_time() >= self._due:
                await self._repeat(self._code)

    async def _repeat(self, code: int) -> None:
        """Send one repetition if the key is down."""
        asked = trio.current_time()
        is_down = False
        with trio.CancelScope() as self._asking:
            is_down = await self._is_down(code)
        if self._asking.cancel_called:
            return  # it was released, or another key was pressed, which has its own time
        now = trio.current_time()
        self._due += self._settings.period
        if self._due <= now:
            self._due = now + self._settings.period
        if is_down and now - asked <= STALL:
            self._queue.repeat(code)
            self._queue.flush()
