"""The other end of the control socket (protocol/control.md)."""

from __future__ import annotations

import socket
from typing import Final, Self

import msgspec

__all__ = ["Client", "Failure"]

VERSION: Final = 1
PATIENCE: Final = 30.0
"""Seconds that an answer may take."""
MAX_HEAD: Final = 65536
MAX_BODY: Final = 1 << 30


class Failure(Exception):
    """It cannot be done; the text is one sentence for the operator."""


class _Head(msgspec.Struct):
    ok: bool
    error: str = ""
    octets: int = 0
    facts: dict[str, int | float | str] = {}


class Client:
    """A connection to a daemon. Raises Failure."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE)
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
        """What there is to know of the answer, and the answer. Raises Failure."""
        try:
            self._socket.sendall(msgspec.json.encode({"version": VERSION, "command": command, **arguments}) + b"\n")
            head = self._head(self._file.readline(MAX_HEAD))
            body = self._file.read(head.octets)
        except OSError as error:
            raise Failure(f"no answer from displbe: {error.strerror or error}") from error
        if len(body) < head.octets:
            raise Failure("displbe has ended the connection")
        return head.facts, body

    def _head(self, line: bytes) -> _Head:
        if not line:
            raise Failure("displbe has ended the connection (it serves few clients at a time)")
        try:
            head = msgspec.json.decode(line, type=_Head)
        except msgspec.DecodeError as error:
            raise Failure(f"this is not displbe's answer: {error}") from error
        if not head.ok:
            raise Failure(head.error)
        if not 0 <= head.octets <= MAX_BODY:
            raise Failure("this is not displbe's answer")
        return head


def _why(path: str, error: OSError) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: only root and the group that displbe runs as may use it (the service: adduser USER displbe)"
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        return f"{path}: displbe does not run here, or listens elsewhere (systemctl status displbe; [control] socket)"
    return f"{path}: {error.strerror or error}"
