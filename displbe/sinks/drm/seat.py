"""Cards through libseat, where a session manager (seatd, logind) hands out the right to them: on a VT switch it takes that right away,
and gives it back.

What libseat can do beyond that stays unused: its backends that take a virtual terminal by themselves are never chosen. Its calls wait for
the session manager, so they are made in worker threads, one at a time. Without the library, or a session manager that answers, cards
are simply opened.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
import trio

from . import uapi
from ._libseat import ffi as _ffi

__all__ = ["PLAIN", "Files", "Seat", "find_seat"]

LIBRARY: Final = "libseat.so.1"
RETRY: Final = 5.0
"""Seconds between attempts to reach a session manager that is not there."""
ENABLE_WAIT: Final = 1000
"""Milliseconds at most until a new seat says whether it is ours now."""

_log = structlog.get_logger("displbe.drm")


class Files:
    """How device nodes are opened: as any file."""

    active = False
    """There is a seat, and it is ours."""

    def open(self, path: str) -> int:
        """Open a card. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self, fd: int) -> None:
        """Close what `open` has given."""
        os.close(fd)

    def manages(self, fd: int) -> bool:
        """Whether a session manager decides if this file may be DRM master, and not we."""
        return False

    def outdated(self, path: str, fd: int) -> bool:
        """Whether the card is better opened anew: a session manager opens it now, and did not when this file was opened."""
        return False


PLAIN: Final = Files()


class Seat(Files):
    """A seat, lost and found again. `open` and `close` wait: for worker threads."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.libseat_set_log_level(0)  # what fails is told here
        self._seat: Any = None
        self._events = -1
        self._devices: dict[int, int] = {}
        self._early: set[int] = set()
        """Files that were opened while the seat was another session's: not ours to use."""
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._asked_to_leave = False
        self._said = ""
        # Kept: they live as long as C may call them.
        self._callbacks = (
            _ffi.callback("void(struct libseat *, void *)", self._enabled),
            _ffi.callback("void(struct libseat *, void *)", self._disabled),
        )
        self._listener = _ffi.new("struct libseat_seat_listener *", self._callbacks)

    def _enabled(self, seat: Any, userdata: Any) -> None:
        self.active = True
        _log.info("the seat is ours")

    def _disabled(self, seat: Any, userdata: Any) -> None:
        self.active = False
        self._asked_to_leave = True
        _log.info("the seat is another session's")

    # In worker threads

    def connect(self) -> None:
        """Reach the session manager, and learn whether the seat is ours. Nothing happens where there is none."""
        with self._lock:
            seat = self._library.libseat_open_seat(self._listener, _ffi.NULL)
            if seat == _ffi.NULL:
                self._say("no seat: cards are opened without a session manager", os.strerror(_ffi.errno))
                return
            self._seat = seat
            self._refused.clear()
            # A file of our own: libseat closes its one as soon as an answer fails, perhaps while the loop waits for it.
            self._events = os.dup(self._library.libseat_get_fd(seat))
            self._say("seat opened", "")
            if not self.active:
                self._dispatch(ENABLE_WAIT)

    def _say(self, event: str, reason: str) -> None:
        if self._said != event:
            self._said = event
            _log.info(event, reason=reason or None)

    def _dispatch(self, milliseconds: int) -> None:
        """Take what the session manager says. (With a time of 0, libseat does not notice that it has gone.)"""
        if self._library.libseat_dispatch(self._seat, milliseconds) < 0:
            self._say("seat lost", os.strerror(_ffi.errno))
            self._let_go()
        else:
            self._agree()

    def _agree(self) -> None:
        """Whoever is to have the seat waits for our word."""
        if self._asked_to_leave:
            self._asked_to_leave = False
            self._library.libseat_disable_seat(self._seat)

    def _let_go(self) -> None:
        self.active = False
        self._devices.clear()
        self._early.clear()
        seat, self._seat = self._seat, None
        os.close(self._events)
        self._library.libseat_close_seat(seat)

    def _take_events(self) -> None:
        with self._lock:
            if self._seat is not None:
                self._dispatch(1)

    def open(self, path: str) -> int:
        with self._lock:
            if self._seat is None or path in self._refused:
                return super().open(path)
            if self.active:
                device, fd = self._ask_for(path)
                if device >= 0:
                    self._devices[fd] = device
                    return fd
            fd = super().open(path)
            if not self.active:
                self._early.add(fd)
                with suppress(
                    OSError
                ):  # whoever opens a card first is its master, which is another session's to be; not of other files
                    fcntl.ioctl(fd, uapi.DRM_IOCTL_DROP_MASTER, 0)
            return fd

    def _ask_for(self, path: str) -> tuple[int, int]:
        """The session manager's number for a device, negative if it does not open it, and the file."""
        fd = _ffi.new("int *")
        device = self._library.libseat_open_device(self._seat, path.encode(), fd)
        failed = _ffi.errno
        self._agree()
        if device < 0 and self.active:
            self._refused.add(path)
            _log.warning("the session manager does not open this card", card=path, reason=os.strerror(failed))
        return int(device), int(fd[0])

    def close(self, fd: int) -> None:
        with self._lock:
            self._early.discard(fd)
            device = self._devices.pop(fd, None)
            if device is not None and self._seat is not None:
                self._library.libseat_close_device(self._seat, device)
                self._agree()
        os.close(fd)  # not under the lock: a driver may hang here

    def manages(self, fd: int) -> bool:
        return fd in self._devices or fd in self._early

    def outdated(self, path: str, fd: int) -> bool:
        return self.active and path not in self._refused and fd not in self._devices

    def leave(self) -> None:
        """Give the seat back."""
        with self._lock:
            if self._seat is not None:
                self._let_go()

    # In the loop

    async def run(self, changed: Callable[[], None]) -> None:
        """Serve; `changed` is called when the seat has become ours, or another's."""
        while True:
            before = self.active
            if self._seat is None:
                await trio.sleep(RETRY)
                await trio.to_thread.run_sync(self.connect, abandon_on_cancel=True)
            else:
                with trio.move_on_after(RETRY):
                    await trio.lowlevel.wait_readable(self._events)
                await trio.to_thread.run_sync(self._take_events, abandon_on_cancel=True)
            if self.active != before:
                changed()


def find_seat() -> Seat | None:
    """libseat, where it is installed."""
    # Of libseat's backends those that ask a session manager.
    os.environ.setdefault("LIBSEAT_BACKEND", "logind" if "XDG_SESSION_ID" in os.environ else "seatd")
    try:
        return Seat(_ffi.dlopen(LIBRARY))
    except OSError:
        return None
