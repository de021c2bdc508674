"""Closes the displays that a killed daemon has left connected. A new daemon does this first.

Loading the rest of the daemon takes seconds on a slow board. Until the backend's state is 6, guests go on sending requests, and Linux's
frontend waits 3 s for each response (XEN_DRM_FRONT_WAIT_BACK_MS in xen_drm_front.h). Therefore this module speaks to XenStore by itself,
and imports nothing that is slow to load.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from typing import Final

from displbe.wire import xs
from displbe.wire.xs import NUL, Op

from . import paths
from .single_instance import single_instance

__all__ = ["close_stale_displays"]

TIMEOUT: Final = 3.0
"""Seconds that all of this may take. Displays that are not closed by then are closed once the daemon has started."""
# xen/include/public/io/xenbus.h
_CONNECTED: Final = b"4"
_CLOSING: Final = b"5"
_CLOSED: Final = b"6"
CLOSING_TIME: Final = 0.1
"""Seconds between state 5 and state 6, so that frontends that poll see the 5 (wire.xenbus.TRANSITIONS)."""


class _Refused(Exception):
    """XenStore answered with an error."""


class _Store:
    """A connection to XenStore that sends one request at a time. Methods raise OSError (no answer), xs.ProtocolError, _Refused."""

    def __init__(self, path: str) -> None:
        self._until = time.monotonic() + TIMEOUT
        self._fd = paths.connect(path, TIMEOUT)

    def close(self) -> None:
        os.close(self._fd)

    def ask(self, op: Op, payload: bytes, transaction: int = 0) -> bytes:
        """Send a request and return the payload of the reply."""
        message = xs.encode(op, 0, transaction, payload)
        # The device accepts whole messages, and its poll never reports POLLOUT.
        if os.write(self._fd, message) != len(message):
            raise OSError("XenStore does not accept requests")
        reply = self._receive()
        if reply.op == Op.ERROR:
            raise _Refused(reply.payload)
        return reply.payload

    def read(self, path: bytes, transaction: int = 0) -> bytes:
        """Return a node's value."""
        return self.ask(Op.READ, path + NUL, transaction)

    def children(self, path: bytes) -> Iterator[bytes]:
        """Yield the paths of the nodes below a node; none when it is missing."""
        try:
            names = self.ask(Op.DIRECTORY, path + NUL)
        except _Refused:
            return
        yield from (path + b"/" + name for name in xs.split(names))

    def _receive(self) -> xs.Packet:
        decoder = xs.Decoder()
        while True:
            self._wait()
            data = os.read(self._fd, 65536)
            if not data:
                raise OSError("XenStore has closed the connection")
            for packet in decoder.feed(data):
                return packet

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        if not poll.poll(max(0.0, self._until - time.monotonic()) * 1000):
            raise OSError("XenStore does not answer")


def close_stale_displays(device: str = paths.GNTDEV, store: str | None = None) -> None:
    """Set the state of this domain's displays from 4 to 5 and then to 6, where the frontend is at 4 too.

    Do nothing while another daemon runs in this domain. Failures are ignored: the daemon closes the rest once it has started.
    The configuration has not been read yet; without `store`, XenStore is looked for at the default paths, whatever `[xen] store` says.
    If the daemon then fails to start, the displays stay closed until a daemon starts.
    """
    store = store or paths.find_store()
    try:
        if store is not None:
            with single_instance(device):
                _close_all(store)
    except (OSError, ValueError, xs.ProtocolError):
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
            time.sleep(CLOSING_TIME)
        for display in closing:
            _switch(store, display, _CLOSING, _CLOSED)
    finally:
        store.close()


def _connected(store: _Store, display: bytes) -> bool:
    """Return whether the display's frontend is at state 4."""
    try:
        frontend = store.read(display + b"/frontend")
        return store.read(frontend + b"/state") == _CONNECTED
    except _Refused:
        return False


def _switch(store: _Store, display: bytes, old: bytes, new: bytes) -> bool:
    """Change our state from `old` to `new`. Return False when it is not `old`.

    This is a transaction, because the toolstack may be removing the display.
    """
    try:
        number = int(store.ask(Op.TRANSACTION_START, NUL).rstrip(NUL))
        is_old = store.read(display + b"/state", number) == old
        if is_old:
            store.ask(Op.WRITE, display + b"/state\0" + new, number)
        store.ask(Op.TRANSACTION_END, b"T\0" if is_old else b"F\0", number)
        return is_old
    except _Refused:
        return False
