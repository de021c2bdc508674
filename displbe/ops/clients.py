"""Who is connected to a socket of ours: few at a time, since the loop that serves the rings serves them, too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog
import trio

__all__ = ["MAX_CLIENTS", "Clients"]

MAX_CLIENTS: Final = 8
ACCEPT_PACE: Final = 0.01
"""Seconds between two connections."""
_log: Any = structlog.get_logger("displbe.clients")


class Clients:
    """The clients of one purpose, however many sockets they come by. `serve` is run for each; whatever it raises stays with its client."""

    def __init__(self, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
        self.count = 0
        self._serve = serve

    async def accept(self, listener: trio.SocketListener) -> None:
        """Serve who comes, until cancelled. Past MAX_CLIENTS, who comes finds the connection ended."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    client = await listener.accept()
                except OSError as error:  # no more files, for one
                    _log.warning("cannot accept a client", reason=error.strerror)
                    await trio.sleep(1)
                    continue
                if self.count < MAX_CLIENTS:
                    self.count += 1
                    nursery.start_soon(self._one, client)
                else:
                    client.socket.close()
                await trio.sleep(ACCEPT_PACE)

    async def _one(self, client: trio.SocketStream) -> None:
        try:
            async with client:
                await self._serve(client)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass
        except Exception:
            _log.exception("a client could not be served")
        finally:
            self.count -= 1
