"""The first thing that a daemon does: it closes the displays that are still connected, and that nobody serves since the daemon before it
was killed.

To load the rest takes seconds on a slow board. Until their backend is at 6, guests go on asking, and Linux' frontend waits 3 s for
each answer (VDRM_WAIT_BACK_MS in xen_drm_front.h). So this asks XenStore itself, and imports nothing that takes long.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from struct import Struct
from typing import Final

from . import places
from .alone import alone

__all__ = ["close_what_nobody_serves"]

PATIENCE: Final = 3.0
"""Seconds that all of this may take: what is not done by then waits for the whole start, which takes longer where this does."""
# xen/include/public/io/xs_wire.h
_HEADER: Final = Struct("=IIII")
_DIRECTORY, _READ, _TRANSACTION_START, _TRANSACTION_END, _WRITE, _ERROR = 1, 2, 6, 7, 11, 16
_LONGEST: Final = 1 << 20
# xen/include/public/io/xenbus.h
_CONNECTED: Final = b"4"
_CLOSING: Final = b"5"
_CLOSED: Final = b"6"
SEEN: Final = 0.1
"""Seconds that a 5 stands, for those who poll (wire.xenbus.TRANSITIONS)."""


class _Refused(Exception):
    """XenStore says no."""


class _Store:
    """XenStore, one request at a time. Methods raise OSError (nobody answers), _Refused."""

    def __init__(self, path: str) -> None:
        self._until = time.monotonic() + PATIENCE
        self._fd = places.connect(path, PATIENCE)

    def close(self) -> None:
        os.close(self._fd)

    def ask(self, operation: int, payload: bytes, transaction: int = 0) -> bytes:
        """The answer's payload."""
        message = _HEADER.pack(operation, 0, transaction, len(payload)) + payload
        # The device takes a message whole, and its poll never says that it does.
        if os.write(self._fd, message) != len(message):
            raise OSError("XenStore takes no requests")
        told, _, _, size = _HEADER.unpack(self._take(_HEADER.size))
        if size > _LONGEST:
            raise OSError("no answer of XenStore's")
        answer = self._take(size)
        if told == _ERROR:
            raise _Refused(answer)
        return answer

    def read(self, path: bytes, transaction: int = 0) -> bytes:
        """A node's value."""
        return self.ask(_READ, path + b"\0", transaction)

    def children(self, path: bytes) -> Iterator[bytes]:
        """Paths of the nodes below a node; none where it is missing."""
        try:
            names = self.ask(_DIRECTORY, path + b"\0")
        except _Refused:
            return
        yield from (path + b"/" + name for name in names.split(b"\0") if name)

    def _take(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size:
            self._wait()
            piece = os.read(self._fd, size - len(taken))
            if not piece:
                raise OSError("XenStore has gone")
            taken += piece
        return taken

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            raise OSError("XenStore does not answer")


def close_what_nobody_serves(device: str = places.GNTDEV, store: str | None = None) -> None:
    """Set the state of our domain's displays from 4 to 5 and 6 where their frontends are at 4, too. What cannot be done now is done later,
    when the daemon meets the device. Nothing is done while another daemon runs in this domain.

    The configuration has not been read yet: XenStore is where it usually is, and should the daemon not start, the displays stay closed
    until one does.
    """
    store = store or places.find()
    try:
        if store is not None:
            with alone(device):
                _close_all(store)
    except (OSError, ValueError):
        pass


def _close_all(path: str) -> None:
    store = _Store(path)
    try:
        displays = [display for domain in store.children(b"backend/vdispl") for display in store.children(domain)]
        closing = [
            display
            for display in displays
            if _connected(store, display) and _switch(store, display, _CONNECTED, _CLOSING)
        ]
        if closing:
            time.sleep(SEEN)
        for display in closing:
            _switch(store, display, _CLOSING, _CLOSED)
    finally:
        store.close()


def _connected(store: _Store, display: bytes) -> bool:
    """What its frontend says."""
    try:
        frontend = store.read(display + b"/frontend")
        return store.read(frontend + b"/state") == _CONNECTED
    except _Refused:
        return False


def _switch(store: _Store, display: bytes, of: bytes, to: bytes) -> bool:
    """Change our state, unless it is another one by now. In a transaction: the toolstack may be removing the display."""
    try:
        number = int(store.ask(_TRANSACTION_START, b"\0").rstrip(b"\0"))
        good = store.read(display + b"/state", number) == of
        if good:
            store.ask(_WRITE, display + b"/state\0" + to, number)
        store.ask(_TRANSACTION_END, b"T\0" if good else b"F\0", number)
        return good
    except _Refused:
        return False
