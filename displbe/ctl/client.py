"""The client of the control socket (protocol/control.md)."""

from __future__ import annotations

import socket
from typing import Final, Self

import msgspec

from displbe.ops.status import Status

__all__ = ["Client", "Failure", "read_status"]

VERSION: Final = 1
TIMEOUT: Final = 30.0
"""Seconds to wait for an answer."""
MAX_HEAD: Final = 65536
MAX_BODY: Final = 1 << 30


class Failure(Exception):
    """A command failed; the text is one sentence for the operator."""


class _Head(msgspec.Struct):
    ok: bool
    error: str = ""
    size: int = msgspec.field(name="octets", default=0)
    """Bytes of the body that follows."""
    facts: dict[str, int | float | str] = {}


class Client:
    """A connection to a daemon. Raises Failure."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(TIMEOUT)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Failure(_why(path, error)) from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, command: str, **arguments: str) -> tuple[dict[str, int | float | str], bytes]:
        """Send a command and return the facts and the body of its answer. Raises Failure."""
        try:
            self._socket.sendall(msgspec.json.encode({"version": VERSION, "command": command, **arguments}) + b"\n")
            head = self._head(self._file.readline(MAX_HEAD))
            body = self._file.read(head.size)
        except OSError as error:
            raise Failure(f"no answer from displbe: {error.strerror or error}") from error
        if len(body) < head.size:
            raise Failure("displbe has closed the connection")
        return head.facts, body

    def _head(self, line: bytes) -> _Head:
        if not line:
            raise Failure("displbe has closed the connection (it serves few clients at a time)")
        try:
            head = msgspec.json.decode(line, type=_Head)
        except msgspec.DecodeError as error:
            raise Failure(f"the answer is not from displbe: {error}") from error
        if not head.ok:
            raise Failure(head.error)
        if not 0 <= head.size <= MAX_BODY:
            raise Failure("the answer is not from displbe")
        return head


def read_status(client: Client) -> Status:
    """Return the daemon's status. Raises Failure."""
    _, body = client.ask("status")
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as error:
        raise Failure(f"displbectl and the daemon have different versions: {error}") from error


def _why(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return (
            f"{path}: only root and the group that displbe runs as may use it (for the service: adduser USER displbe)"
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"{path}: displbe does not run here, or listens on another path (systemctl status displbe; [control] socket)"
    return f"{path}: {error.strerror or error}"
