"""A connected vdispl device: its connectors at work."""

from __future__ import annotations

from collections.abc import Callable

import trio

from displbe.sinks.flip import FlipClock
from displbe.whole_seconds import next_second
from displbe.wire.errors import FrontendBroken

from .connector import Connector

__all__ = ["ConnectedDisplay"]


class ConnectedDisplay:
    """The connectors of one connection. When the frontend breaks the protocol, `shut_off` is called once with them and the reason."""

    def __init__(self, shut_off: Callable[[list[Connector], FrontendBroken], None]) -> None:
        self.connectors: list[Connector] = []
        self.clock = FlipClock()
        """Ends the flips of blanked screens."""
        self._shut_off = shut_off
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
        """Look once a second for requests whose notification was lost. There should be none; each one is counted and logged.

        The second look after a request finds it. The guest waits 3 s for the response.
        """
        while True:
            await trio.sleep_until(next_second())
            for connector in self.connectors:
                connector.requests.rescue()
