"""A connected vdispl device: its connectors at work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from displbe.sinks.flip import FlipClock
from displbe.whole_seconds import next_multiple
from displbe.wire.errors import FrontendBroken

from .connector import Connector

__all__ = ["ConnectedDisplay"]

LOOK: Final = 2.0
"""Seconds between two looks for lost notifications."""
LOOK_AGAIN: Final = 0.5
"""Seconds until the next look when a request waits, or when Python has taken a connector from the pump."""


class ConnectedDisplay:
    """The connectors of one connection. When the frontend breaks the protocol, `shut_off` is called once with them and the reason."""

    def __init__(self, shut_off: Callable[[list[Connector], FrontendBroken], None]) -> None:
        self.connectors: list[Connector] = []
        self.clock = FlipClock()
        """Ends the flips of blanked screens."""
        self._shut_off = shut_off
        self._rest = trio.CancelScope()
        """Lasts until the next look for lost notifications."""
        self._failed = trio.Event()
        self._reason = FrontendBroken("")

    def broken(self, reason: FrontendBroken) -> None:
        """End this device, and no other: the frontend broke the protocol in a way that no response can report."""
        if not self._failed.is_set():
            self._reason = reason
            self._failed.set()
            self._shut_off(self.connectors, reason)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises FrontendBroken. The caller stops the connectors."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.clock.run)
            for connector in self.connectors:
                nursery.start_soon(connector.run)
            task_status.started()
            for connector in self.connectors:  # requests may have arrived before the ring was started
                connector.requests.look()
            nursery.start_soon(self._rescue)
            await self._failed.wait()
            raise self._reason

    async def close_screens(self) -> None:
        """End the operator's use of the screens. Their outputs are about to be released, and another guest may claim them."""
        for connector in self.connectors:
            await connector.screen.close()

    async def _rescue(self) -> None:
        """Look for requests whose notification was lost. There should be none; each one is counted and logged.

        The second look after a request finds it, 2.5 s after the request at the latest: the guest waits 3 s for the response. While the
        pump serves all connectors, there is nothing to look for: it gives a connector back whose guest does not flip.
        """
        wait = 0.0
        while True:
            is_pumped = all(connector.is_pumped for connector in self.connectors)
            until = trio.current_time() + wait if wait else math.inf if is_pumped else next_multiple(LOOK)
            with trio.CancelScope(deadline=until) as self._rest:
                await trio.sleep_forever()
            found = [connector.requests.rescue() for connector in self.connectors]
            wait = LOOK_AGAIN if any(found) else 0.0

    def taken(self) -> None:
        """Take note that Python serves a connector again."""
        if self._rest.deadline == math.inf:
            self._rest.deadline = trio.current_time() + LOOK_AGAIN
