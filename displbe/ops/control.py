"""The control socket: what `displbectl` talks to. protocol/control.md describes what is said.

Served by the loop that serves the rings, so a client must not cost the guests anything: there are few clients at a time, requests
are short and served at a bounded rate, nothing is read while an answer is under way, and who does not take an answer is dropped.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from struct import Struct
from typing import Any, Final

import msgspec
import structlog
import trio

from .clients import Clients
from .listen import unix_listener
from .settings import ControlSettings

__all__ = [
    "VERSION",
    "Answer",
    "CommandError",
    "Control",
    "Head",
    "Lines",
    "Request",
    "parse_request",
]

VERSION: Final = 1
"""Of the protocol."""
MAX_LINE: Final = 4096
"""Octets of a request."""
IDLE: Final = 60.0
"""Seconds that a client may be connected without asking."""
STALLED: Final = 5.0
"""Seconds in which a client must take a piece of an answer."""
TOO_LONG: Final = 30.0
"""Seconds in which it must have taken all of it."""
PIECE: Final = 65536
PACE: Final = 0.02
"""Seconds between two commands, of all clients together."""
DEADLINE: Final = 10.0
"""Seconds in which a command must be done. What a guest holds up (a buffer that a card or a compositor still has) it may hold for ever."""
_CREDENTIALS: Final = Struct("=iII")
_log = structlog.get_logger("displbe.control")


class CommandError(Exception):
    """The command cannot be done; the text goes to who asked."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a client."""

    version: int
    command: str
    guest: str = ""
    """A name, or a domain's number."""
    connector: str = ""
    """The name of its output, or its number; empty: the first one, or all."""


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The line before an answer."""

    ok: bool
    error: str = ""
    octets: int = 0
    """How many follow the line."""
    facts: dict[str, int | float | str] = {}
    """What there is to know of them."""


class Answer(msgspec.Struct, frozen=True):
    """What a command gives."""

    body: bytes | memoryview = b""
    facts: dict[str, int | float | str] = {}


Command = Callable[[Request], Awaitable[Answer]]


class Lines:
    """Lines out of octets that come as they come. Sans-IO."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, octets: bytes) -> list[bytes]:
        """The lines that are whole now, without their ends. Raises CommandError when one is too long."""
        self._rest += octets
        *lines, rest = self._rest.split(b"\n")
        if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            self._rest.clear()
            raise CommandError(f"a request has at most {MAX_LINE} octets")
        self._rest = rest
        return [bytes(line) for line in lines]


def parse_request(line: bytes) -> Request:
    """The request in a line. Raises CommandError."""
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"no request: {error}") from error
    if request.version != VERSION:
        raise CommandError(f"this is version {VERSION} of the protocol")
    return request


class Control:
    """The socket and who is connected to it. `commands` by name; they raise CommandError."""

    def __init__(self, settings: ControlSettings, commands: Mapping[str, Command]) -> None:
        self._settings = settings
        self._commands = commands
        self.clients = Clients(self._serve)
        self._next = 0.0
        # One large answer in memory at a time.
        self._heavy = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Without a socket, the guests are served all the same."""
        if not self._settings.socket:
            task_status.started()
            return
        path = Path(self._settings.socket)
        with contextlib.ExitStack() as stack:
            try:
                listener = stack.enter_context(unix_listener(path))
            except OSError as error:
                _log.error("no control socket", path=str(path), reason=str(error))
                task_status.started()
                return
            task_status.started()
            await self.clients.accept(listener)

    async def _serve(self, client: trio.SocketStream) -> None:
        try:
            await self._converse(client)
        except CommandError as error:
            await _send(client, Head(False, str(error)), b"")

    async def _converse(self, client: trio.SocketStream) -> None:
        """Raises CommandError for what is no request."""
        lines = Lines()
        while True:
            with trio.move_on_after(IDLE) as waiting:
                octets = await client.receive_some(MAX_LINE)
            if waiting.cancelled_caught or not octets:
                return
            for line in lines.feed(octets):
                await self._answer(client, line)

    async def _answer(self, client: trio.SocketStream, line: bytes) -> None:
        now = trio.current_time()
        self._next = max(now, self._next + PACE)
        await trio.sleep_until(self._next)
        request = parse_request(line)
        command = self._commands.get(request.command)
        if command is None:
            raise CommandError(f"no such command; there are: {', '.join(sorted(self._commands))}")
        if request.command not in SILENT:
            _log.info(
                "command", command=request.command, guest=request.guest, connector=request.connector, **_who(client)
            )
        async with contextlib.AsyncExitStack() as stack:
            try:
                with trio.fail_after(DEADLINE):
                    if request.command in LARGE:
                        await stack.enter_async_context(self._heavy)
                    made = await command(request)
                head, body = Head(True, octets=len(made.body), facts=made.facts), made.body
            except CommandError as error:
                head, body = Head(False, str(error)), b""
            except trio.TooSlowError:
                head, body = Head(False, f"not done within {DEADLINE:.0f} s: what it needs is held up"), b""
            await _send(client, head, body)


LARGE: Final = frozenset({"screenshot", "trace"})
SILENT: Final = frozenset({"status"})
"""What leaves no line in the log."""


def _who(client: trio.SocketStream) -> dict[str, Any]:
    """Who is on the other side."""
    octets = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(octets)
    return {"pid": pid, "uid": uid}


async def _send(client: trio.SocketStream, head: Head, body: bytes | memoryview) -> None:
    """Raises trio.TooSlowError, trio.BrokenResourceError."""
    with trio.fail_after(TOO_LONG):
        for octets in (memoryview(msgspec.json.encode(head) + b"\n"), memoryview(body)):
            for start in range(0, len(octets), PIECE):
                with trio.fail_after(STALLED):
                    await client.send_all(octets[start : start + PIECE])
