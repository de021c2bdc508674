"""The clients of a socket. The loop that serves the rings also serves them, so their number is limited."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from .listen import unix_listener

__all__ = ["MAX_CLIENTS", "Clients"]

MAX_CLIENTS: Final = 8
ACCEPT_INTERVAL: Final = 0.01
"""Seconds between two connections that are accepted."""
ACCEPT_RETRY: Final = 1.0
"""Seconds after which accepting is tried again when it has failed."""
_log: Any = structlog.get_logger("displbe.clients")


class Clients:
    """The clients of one purpose, such as `control`, over any number of sockets.

    `serve` is run for each client. An exception ends the connection of its client only.
    """

    def __init__(self, purpose: str, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
        self.count = 0
        self._serve = serve
        self._log = _log.bind(purpose=purpose)

    async def serve_unix(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the clients of a UNIX socket until cancelled. If the socket cannot be opened, log an error and return."""
        with contextlib.ExitStack() as stack:
            try:
                listener = stack.enter_context(unix_listener(path))
            except OSError as error:
                self._log.error("cannot open the socket: its clients are not served", path=str(path), reason=str(error))
                task_status.started()
                return
            task_status.started()
            await self.accept(listener)

    async def accept(self, listener: trio.SocketListener) -> None:
        """Serve the clients of a listening socket until cancelled. When MAX_CLIENTS are connected, close further connections at once."""
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    client = await listener.accept()
                except OSError as error:  # for example EMFILE
                    self._log.warning("cannot accept a client: trying again", reason=error.strerror)
                    await trio.sleep(ACCEPT_RETRY)
                    continue
                if self.count < MAX_CLIENTS:
                    self.count += 1
                    nursery.start_soon(self._serve_client, client)
                else:
                    client.socket.close()
                await trio.sleep(ACCEPT_INTERVAL)

    async def _serve_client(self, client: trio.SocketStream) -> None:
        try:
            async with client:
                await self._serve(client)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass
        except Exception:
            self._log.exception("serving a client failed: its connection is closed")
        finally:
            self.count -= 1
