"""The clients of a socket. The loop that serves the rings also serves them, so their number is limited.

Each listening socket has a number of clients of its own, so that those of one socket cannot shut out those of another. When one more comes,
the client that has been idle for longest is disconnected for it. A client that is being served is never disconnected for another one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from displbe.shortage import shortage

from .listen import unix_listener

__all__ = ["MAX_CLIENTS", "Client", "Clients"]

MAX_CLIENTS: Final = 8
"""Clients of one listening socket."""
ACCEPT_INTERVAL: Final = 0.01
"""Seconds between two connections that are accepted."""
ACCEPT_RETRY: Final = 1.0
"""Seconds after which accepting is tried again when it has failed."""
GRACE: Final = 0.5
"""Seconds that a client may be idle although another one waits for its place: it may have just connected, or ask again at once."""
FAREWELL_TIMEOUT: Final = 0.1
"""Seconds in which a client that is disconnected for another one must take the farewell."""
_log: Any = structlog.get_logger("displbe.clients")


class Client:
    """A connection. It is idle while displbe waits for its request, also when a part of the request has come."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.scope = trio.CancelScope()
        """Cancelled to disconnect it for another client."""
        self._idle_since: float | None = trio.current_time()
        """In seconds of trio's clock; None: it is being served."""

    @property
    def idle(self) -> float:
        """Seconds for which it has been idle; -1: it is being served."""
        return -1.0 if self._idle_since is None else trio.current_time() - self._idle_since

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Serve a request of the client in the block. The client is not idle meanwhile."""
        self._idle_since = None
        try:
            yield
        finally:
            self._idle_since = trio.current_time()


class _Places:
    """The places of one listening socket's clients."""

    def __init__(self) -> None:
        self.clients: set[Client] = set()
        self._left = trio.Event()

    def leave(self, client: Client) -> None:
        """Free a client's place."""
        self.clients.discard(client)
        self._left.set()

    async def wait_free(self) -> None:
        """Return when there is a free place. Disconnect the client that has been idle for longest, as soon as it has been so for GRACE."""
        while len(self.clients) >= MAX_CLIENTS:
            self._left = trio.Event()
            longest = max(self.clients, key=lambda client: client.idle)
            if longest.idle >= GRACE:
                longest.scope.cancel()
                await self._left.wait()
            else:
                with trio.move_on_after(GRACE - max(0.0, longest.idle)):
                    await self._left.wait()


class Clients:
    """The clients of one purpose, such as `control`, over any number of sockets.

    `serve` is run for each client. An exception ends the connection of its client only. `farewell` is sent to a client that is disconnected
    for another one.
    """

    def __init__(self, purpose: str, serve: Callable[[Client], Awaitable[None]], farewell: bytes) -> None:
        self.count = 0
        """The number of clients of all sockets."""
        self._serve = serve
        self._farewell = farewell
        self._log = _log.bind(purpose=purpose)

    async def serve_unix(self, path: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the clients of a UNIX socket until cancelled. If the socket cannot be opened, log an error and return."""
        with contextlib.ExitStack() as stack:
            try:
                listener = stack.enter_context(unix_listener(path))
            except OSError as error:
                self._log.error(
                    "cannot open the socket: its clients are not served", path=str(path), reason=shortage(error)
                )
                task_status.started()
                return
            task_status.started()
            await self.accept(listener)

    async def accept(self, listener: trio.SocketListener) -> None:
        """Serve the clients of a listening socket until cancelled. Accept the next one when there is a place for it."""
        places = _Places()
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:  # for example EMFILE
                    self._log.warning("cannot accept a client: trying again", reason=shortage(error))
                    await trio.sleep(ACCEPT_RETRY)
                    continue
                with contextlib.ExitStack() as undo:
                    undo.callback(stream.socket.close)
                    await places.wait_free()
                    undo.pop_all()
                client = Client(stream)
                places.clients.add(client)
                self.count += 1
                nursery.start_soon(self._serve_client, client, places)
                await trio.sleep(ACCEPT_INTERVAL)

    async def _serve_client(self, client: Client, places: _Places) -> None:
        try:
            async with client.stream:
                with client.scope:
                    await self._serve(client)
                if client.scope.cancelled_caught:
                    with trio.move_on_after(FAREWELL_TIMEOUT):
                        await client.stream.send_all(self._farewell)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass
        except Exception:
            self._log.exception("serving a client failed: its connection is closed")
        finally:
            self.count -= 1
            places.leave(client)
