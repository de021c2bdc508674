"""Opens cards through libseat, where a session manager (seatd, logind) controls access to them.

On a VT switch, the session manager takes the access away, and gives it back later. seatd takes the terminal's keyboard and text away from
the kernel for as long as it has a client, so displbe is one only while a guest uses a card that no other program uses.

displbe uses only those backends of libseat that ask a session manager, never one that takes a virtual terminal by
itself. libseat's calls wait for the session manager, so they are made in worker threads, one at a time. Without the
library, or without a session manager that answers, cards are opened like any file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

import structlog
import trio

from displbe.ops.log import SparseLog
from displbe.shortage import brief, severity
from displbe.threads import run_in_thread

from . import uapi
from ._libseat import ffi as _ffi

__all__ = ["PLAIN", "FileOpener", "Libseat", "find_libseat"]

LIBRARY: Final = "libseat.so.1"
RETRY: Final = 5.0
"""Seconds until the second attempt to reach a session manager that does not answer. Each pause is four times the one before."""
LONGEST: Final = 60.0
"""Maximum seconds between two attempts: each costs a thread's time and a call of libseat, beside the guests' flips."""
ENABLE_WAIT: Final = 1000
"""Maximum milliseconds to wait until the session manager says whether displbe has a new seat."""

_log = structlog.get_logger("displbe.drm")


class FileOpener:
    """Opens device nodes like any file."""

    active = False
    """Whether a session manager has given displbe the seat."""

    def open(self, path: str) -> int:
        """Open a card and return its fd. Raises OSError. May wait: for worker threads."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)

    def close(self, fd: int) -> None:
        """Close an fd that `open` returned. May wait: for worker threads."""
        os.close(fd)

    def manages(self, fd: int) -> bool:
        """Return whether a session manager decides if this file is DRM master; else displbe asks to be master."""
        return False

    def is_outdated(self, path: str, fd: int) -> bool:
        """Return whether the card should be opened anew.

        That is so if a session manager can open the card now, and did not open this file.
        """
        return False

    def could_ask(self, path: str) -> bool:
        """Return whether a session manager may open this card and has not been asked: `use` asks."""
        return False

    def use(self, path: str) -> bool:
        """Ask for the seat, for a card that a guest uses and no other program does. Return whether the session manager opens the card now,
        or will open it when displbe's session is in front. May wait: for worker threads.
        """
        return False

    def used(self) -> None:
        """Take note, in the loop, that `use` has been called."""

    def leave(self, path: str) -> None:
        """Take note, in the loop, that no guest uses this card any more."""


PLAIN: Final = FileOpener()


class Libseat(FileOpener):
    """A connection to the session manager while a card is used. It is made again when it is lost.

    What is shared by the loop and the worker threads is changed under the lock, except for single flags.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.libseat_set_log_level(0)  # failures are in our own log
        self._seat: Any = None
        self._events = -1
        self._devices: dict[int, int] = {}
        """fd -> the session manager's number for the device."""
        self._stale_devices: set[int] = set()
        """Files that were opened while another session had the seat. They are not used."""
        self._refused: set[str] = set()
        """Paths that the session manager does not open."""
        self._used: set[str] = set()
        """Paths of the cards for which displbe wants the seat."""
        self._is_busy = False
        """Whether the session manager has refused the seat: another program has it, on the terminal in front."""
        self._change = trio.Event()
        """The first card is used, or a card is used no more."""
        self._lock = threading.Lock()
        self._disable_asked = False
        """Whether the session manager waits for displbe to give the seat up."""
        self._last_event = ""
        # References to the callbacks are kept: C calls them while the seat is open.
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
        self._disable_asked = True
        _log.info("the seat is another session's")

    # In worker threads

    def connect(self) -> None:
        """Connect to the session manager, if there is one, and wait for it to say whether displbe has the seat."""
        with self._lock:
            self._connect()

    def _connect(self) -> None:
        seat = self._library.libseat_open_seat(self._listener, _ffi.NULL)
        if seat == _ffi.NULL:
            self._is_busy = _ffi.errno == errno.EBUSY
            self._log_change("no seat: cards are opened without a session manager", os.strerror(_ffi.errno))
            return
        self._seat = seat
        self._refused.clear()
        # A duplicate: libseat closes its own fd as soon as a call fails, perhaps while the loop waits for it.
        try:
            self._events = os.dup(self._library.libseat_get_fd(seat))
        except OSError as error:
            self._close_seat(seat)
            self._log_change("no seat: cards are opened without a session manager", str(error.strerror))
            return
        self._log_change("seat opened", "")
        if not self.active:
            self._dispatch(ENABLE_WAIT)

    def _close_seat(self, seat: Any) -> None:
        """Close the seat. libseat may handle messages meanwhile, which are about a seat that displbe does not have any more."""
        self._seat = None
        self._library.libseat_close_seat(seat)
        self.active = self._disable_asked = False

    def _log_change(self, event: str, reason: str) -> None:
        """Log an event unless it was the last one logged: attempts to connect are repeated."""
        if self._last_event != event:
            self._last_event = event
            _log.info(event, reason=reason or None)

    def _dispatch(self, milliseconds: int) -> None:
        """Handle the session manager's messages.

        With 0 milliseconds, libseat does not notice that the session manager has ended.
        """
        if self._library.libseat_dispatch(self._seat, milliseconds) < 0:
            self._log_change("seat lost", os.strerror(_ffi.errno))
            self._disconnect()
        else:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Give the seat up if the session manager has asked for it. The next session waits for this answer."""
        if self._disable_asked:
            self._disable_asked = False
            self._library.libseat_disable_seat(self._seat)

    def _disconnect(self) -> None:
        self.active = False
        self._devices.clear()
        self._stale_devices.clear()
        os.close(self._events)
        self._close_seat(self._seat)

    def _take_events(self) -> None:
        with self._lock:
            if self._seat is not None:
                self._dispatch(1)

    def open(self, path: str) -> int:
        with self._lock:
            if self._seat is None or path not in self._used:
                return super().open(path)
            if self.active:
                device, fd = self._open_device(path)
                if device >= 0:
                    self._devices[fd] = device
                    return fd
            fd = super().open(path)
            if not self.active:
                self._stale_devices.add(fd)
                # The first file opened on a card becomes its master, but the other session's file is to be master.
                # Files that are not cards refuse this.
                with suppress(OSError):
                    fcntl.ioctl(fd, uapi.DRM_IOCTL_DROP_MASTER, 0)
            return fd

    def _open_device(self, path: str) -> tuple[int, int]:
        """Return the session manager's number for a device, negative if it does not open it, and the fd."""
        fd = _ffi.new("int *")
        device = self._library.libseat_open_device(self._seat, path.encode(), fd)
        failed = _ffi.errno
        self._acknowledge()
        if device < 0 and self.active:
            self._refused.add(path)
            self._used.discard(path)
            _log.warning(
                "the session manager does not open this card: opened without it", card=path, reason=os.strerror(failed)
            )
        return int(device), int(fd[0])

    def close(self, fd: int) -> None:
        with self._lock:
            self._stale_devices.discard(fd)
            device = self._devices.pop(fd, None)
            if device is not None and self._seat is not None:
                self._library.libseat_close_device(self._seat, device)
                self._acknowledge()
        os.close(fd)  # not under the lock: a driver may hang here

    def manages(self, fd: int) -> bool:
        return fd in self._devices or fd in self._stale_devices

    def is_outdated(self, path: str, fd: int) -> bool:
        return self.active and path in self._used and fd not in self._devices

    def could_ask(self, path: str) -> bool:
        return path not in self._used and path not in self._refused and not self._is_busy

    def use(self, path: str) -> bool:
        with self._lock:
            if path in self._refused or self._is_busy:
                return False
            if self._seat is None:
                self._connect()
            if not self._is_busy:
                self._used.add(path)
            return self._seat is not None

    def switch(self, session: int) -> None:
        """Ask for another session: a virtual terminal, by its number. The session manager then asks displbe to give the seat up."""
        with self._lock:
            if self.active and self._library.libseat_switch_session(self._seat, session) < 0:
                _log.info("the session cannot be changed", session=session, reason=os.strerror(_ffi.errno))

    def give_back(self) -> None:
        """Give the seat back."""
        with self._lock:
            if self._seat is not None:
                self._log_change("seat given back", "")
                self._disconnect()

    # In the loop

    def leave(self, path: str) -> None:
        self._used.discard(path)
        self._refused.discard(path)
        self._is_busy = False
        self._change.set()

    def keep(self, paths: Collection[str]) -> None:
        """Take note of the cards that are there. No guest uses any other."""
        for path in self._used - set(paths):
            self.leave(path)

    def used(self) -> None:
        self._change.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Handle the session manager's messages while a card is used, and give the seat back when none is.

        Call `changed` each time the seat has become ours or another session's.
        """
        say = SparseLog(_log)
        pause = RETRY
        while True:
            before = self.active
            try:
                pause = await self._step(pause)
            except Exception as error:  # for example, no thread can be started
                say(
                    "handling the session manager's messages failed; tried again",
                    brief(error),
                    level=severity(error),
                )
                await trio.sleep(RETRY)
            if self.active != before:
                changed()

    async def _step(self, pause: float) -> float:
        """Do what is next. `pause`: seconds until a session manager that does not answer is tried again. Return the next pause."""
        self._change = trio.Event()
        if self._seat is None and (not self._used or self._is_busy):
            await self._change.wait()
        elif self._seat is None:
            with trio.move_on_after(pause):
                await self._change.wait()
                return RETRY
            await run_in_thread(self.connect, abandon_on_cancel=True)
            return min(4 * pause, LONGEST)
        elif not self._used:
            await run_in_thread(self.give_back, abandon_on_cancel=True)
        else:
            await self._wait_for_message()
            await run_in_thread(self._take_events, abandon_on_cancel=True)
        return RETRY

    async def _wait_for_message(self) -> None:
        """Wait until the session manager has something to say, or no card is used any more; for some seconds at most."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_readable, nursery.cancel_scope)
            with trio.move_on_after(RETRY):
                await self._change.wait()
            nursery.cancel_scope.cancel()

    async def _end_when_readable(self, scope: trio.CancelScope) -> None:
        await trio.lowlevel.wait_readable(self._events)
        scope.cancel()


def find_libseat() -> Libseat | None:
    """Return libseat; None: it is not installed."""
    # libseat must use a backend that asks a session manager.
    os.environ.setdefault("LIBSEAT_BACKEND", "logind" if "XDG_SESSION_ID" in os.environ else "seatd")
    try:
        return Libseat(_ffi.dlopen(LIBRARY))
    except OSError:
        return None
