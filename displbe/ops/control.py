"""The control socket, which `displbectl` connects to. protocol/control.md describes its protocol.

The loop that serves the rings also serves this socket. So that clients do not delay guests, their number is limited, requests are short
and served at a limited rate, no request is read while an answer is sent, and a client that does not read its answer is disconnected.
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

from displbe.shortage import shortage

from .clients import Client, Clients
from .settings import ControlSettings

__all__ = [
    "VERSION",
    "Answer",
    "AnswerHeader",
    "CommandError",
    "Control",
    "LineSplitter",
    "Request",
    "parse_request",
]

VERSION: Final = 1
"""The protocol's version."""
MAX_LINE: Final = 4096
"""Maximum bytes of a request, without its newline."""
IDLE_TIMEOUT: Final = 60.0
"""Seconds that a client may be connected without sending a request."""
CHUNK_SIZE: Final = 65536
"""Bytes of an answer that are sent at once."""
CHUNK_TIMEOUT: Final = 5.0
"""Seconds in which a client must read a chunk."""
ANSWER_TIMEOUT: Final = 30.0
"""Seconds in which a client must read the whole answer."""
COMMAND_INTERVAL: Final = 0.02
"""Seconds between two commands, of all clients together."""
COMMAND_TIMEOUT: Final = 10.0
"""Seconds that a command may take. A guest may delay a command without a limit, with a buffer that a card or a compositor still uses."""
FAREWELL: Final = "displbe serves few clients at a time, and this one was idle for longest: connect again"
"""The error that is sent to a client that is disconnected for another one."""
LARGE: Final = frozenset({"screenshot", "trace"})
"""Commands with large answers. Only one such answer is in memory at a time."""
NOT_LOGGED: Final = frozenset({"status"})
"""Commands that are not logged."""
_CREDENTIALS: Final = Struct("=iII")
"""struct ucred (SO_PEERCRED): pid, uid, gid."""
_log = structlog.get_logger("displbe.control")


class CommandError(Exception):
    """The command cannot be executed; the text is sent to the client."""


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's request, one line of JSON."""

    version: int
    command: str
    guest: str = ""
    """The guest's name or domid."""
    connector: str = ""
    """The name of the connector's output, or the connector's number; empty: the first connector, or all of them."""


class AnswerHeader(msgspec.Struct, frozen=True, omit_defaults=True):
    """The line of JSON before an answer's body."""

    ok: bool
    error: str = ""
    octets: int = 0
    """The size in bytes of the body, which follows the line."""
    facts: dict[str, int | float | str] = {}
    """A description of the body, which depends on the command."""


class Answer(msgspec.Struct, frozen=True):
    """The result of a command."""

    body: bytes | memoryview = b""
    facts: dict[str, int | float | str] = {}
    held: contextlib.AsyncExitStack | None = None
    """The resources of the body, which are released when it has been sent."""


Command = Callable[[Request], Awaitable[Answer]]


class LineSplitter:
    """Splits a stream of bytes into lines. It does no I/O."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that are complete now, without their newlines. Raises CommandError for a line longer than MAX_LINE."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        if len(rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            self._rest.clear()
            raise CommandError(f"a request has at most {MAX_LINE} bytes")
        self._rest = rest
        return [bytes(line) for line in lines]


def parse_request(line: bytes) -> Request:
    """Return the request in a line. Raises CommandError."""
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CommandError(f"not a request: {error}") from error
    if request.version != VERSION:
        raise CommandError(f"unknown version {request.version}: this displbe speaks version {VERSION} of the protocol")
    return request


class Control:
    """The control socket. `commands` has a function for each command's name; it may raise CommandError."""

    def __init__(self, settings: ControlSettings, commands: Mapping[str, Command]) -> None:
        self._settings = settings
        self._commands = commands
        self.clients = Clients("control", self._serve, msgspec.json.encode(AnswerHeader(False, FAREWELL)) + b"\n")
        self._not_before = 0.0
        """The earliest time of the next command, in seconds of trio's clock."""
        self._large_answer = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve clients until cancelled. Return at once if no socket is configured or it cannot be opened; guests are served anyway."""
        if self._settings.socket:
            await self.clients.serve_unix(Path(self._settings.socket), task_status=task_status)
        else:
            task_status.started()

    async def _serve(self, client: Client) -> None:
        try:
            await self._answer_requests(client)
        except CommandError as error:
            await _send(client.stream, AnswerHeader(False, str(error)), b"")

    async def _answer_requests(self, client: Client) -> None:
        """Answer requests until the client disconnects. Raises CommandError for a line that is not a request; the connection then ends."""
        splitter = LineSplitter()
        while True:
            with trio.move_on_after(IDLE_TIMEOUT) as waiting:
                data = await client.stream.receive_some(MAX_LINE)
            if waiting.cancelled_caught or not data:
                return
            for line in splitter.feed(data):
                with client.served():
                    await self._answer(client.stream, line)

    async def _answer(self, client: trio.SocketStream, line: bytes) -> None:
        self._not_before = max(trio.current_time(), self._not_before + COMMAND_INTERVAL)
        await trio.sleep_until(self._not_before)
        request = parse_request(line)
        command = self._commands.get(request.command)
        if command is None:
            raise CommandError(f"no such command; there are: {', '.join(sorted(self._commands))}")
        if request.command not in NOT_LOGGED:
            _log.info(
                "command", command=request.command, guest=request.guest, connector=request.connector, **_peer(client)
            )
        async with contextlib.AsyncExitStack() as stack:
            try:
                with trio.fail_after(COMMAND_TIMEOUT):
                    if request.command in LARGE:
                        await stack.enter_async_context(self._large_answer)
                    answer = await command(request)
                if answer.held is not None:
                    stack.push_async_exit(answer.held)
                header, body = AnswerHeader(True, octets=len(answer.body), facts=answer.facts), answer.body
            except CommandError as error:
                header, body = AnswerHeader(False, str(error)), b""
            except (OSError, MemoryError) as error:
                header, body = AnswerHeader(False, f"not done: {shortage(error)}"), b""
            except trio.TooSlowError:
                header = AnswerHeader(
                    False, f"not done within {COMMAND_TIMEOUT:.0f} s: something that it needs is busy"
                )
                body = b""
            await _send(client, header, body)


def _peer(client: trio.SocketStream) -> dict[str, Any]:
    """Return the client's process and user, for the log."""
    credentials = client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return {"pid": pid, "uid": uid}


async def _send(client: trio.SocketStream, header: AnswerHeader, body: bytes | memoryview) -> None:
    """Send an answer. Raises trio.TooSlowError, trio.BrokenResourceError."""
    with trio.fail_after(ANSWER_TIMEOUT):
        for data in (msgspec.json.encode(header) + b"\n", body):
            for start in range(0, len(data), CHUNK_SIZE):
                # Released also if sending fails: the memory of a body is freed when no view of it is left.
                with trio.fail_after(CHUNK_TIMEOUT), memoryview(data)[start : start + CHUNK_SIZE] as chunk:
                    await client.send_all(chunk)
