"""The pump from Python's side: its thread, what it hands over, and the two functions that change a connector's owner.

`Pump.give` makes the pump the owner of a connector, `Pump.take` makes Python its owner again. While the pump owns it, Python changes
nothing of it. When `take` has returned, the pump touches nothing of it any more.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import structlog
import trio

from displbe.readiness import serve
from displbe.resources import refuse_priorities
from displbe.threads import run_in_thread_or_here, start_thread

from .library import ffi, open_library

__all__ = ["Bucket", "Copier", "Pump", "PumpError", "SystemCalls", "open_pump"]

ROOM: Final = 64
"""Messages that are taken from the pump at once."""
PRIORITY: Final = 1
"""The real-time priority of the pump's thread: the lowest one, before all programs that have none (sched(7))."""
_log = structlog.get_logger("displbe.pump")


class PumpError(OSError):
    """The system refuses the pump a file, a thread or memory."""


class SystemCalls(msgspec.Struct, frozen=True):
    """System calls that take the place of the pump's own, for a simulated machine. Each returns a negative error number when it fails.

    They are called in the pump's thread.
    """

    read: Callable[[int, Any, int], int]
    """Read a file (its number) into memory (a pointer, a size in bytes)."""
    rearm: Callable[[int, int], int]
    """Allow a port (the file, the port) to fire again."""
    notify: Callable[[int, int], int]
    """Notify the other end of a port."""
    commit: Callable[[int, Any], int]
    """Make an atomic commit on a card (the file, a pointer to drm_mode_atomic)."""

    def functions(self) -> tuple[Any, ...]:
        """Return C functions for the members of `struct pump_calls`. The caller keeps them as long as they are used."""
        return (
            ffi.callback("long(int, void *, unsigned long)", self.read),
            ffi.callback("int(int, uint32_t)", self.rearm),
            ffi.callback("int(int, uint32_t)", self.notify),
            ffi.callback("int(int, void *)", self.commit),
        )


def _prefer(thread: threading.Thread) -> str:
    """Give a thread a real-time priority (`LimitRTPRIO=` in displbe.service). Return why it has none, or an empty text.

    Without it, the thread may wait several milliseconds for its turn where a program computes on the same processor.
    """
    assert thread.native_id is not None
    try:
        os.sched_setscheduler(thread.native_id, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    except OSError as error:
        _log.info("the pump has no real-time priority", reason=error.strerror)
        return f"its thread has no real-time priority ({error.strerror}), so that programs which compute can make flips late"
    refuse_priorities()
    return ""


def _owned(library: Any, made: Any, free: str) -> Any:
    """Return a pointer that the library's function `free` frees when nothing refers to it any more. The library stays loaded until then."""

    def end(pointer: Any) -> None:
        getattr(library, free)(pointer)

    return ffi.gc(made, end)


class Bucket:
    """A guest's request rate (backend.quota.TokenBucket), from which the pump takes, too: `burst` at once, then `rate` per second."""

    def __init__(self, pump: Pump, burst: float, rate: float) -> None:
        self.struct = ffi.new("struct pump_bucket *", {"empty_at": -math.inf, "burst": burst, "rate": rate})
        self._library = pump.library

    def take(self, amount: float = 1) -> float:
        """Take `amount` tokens, even if there are too few. Return the seconds that the caller has to wait; 0: there were enough."""
        wait: float = self._library.pump_take_tokens(self.struct, amount)
        return wait


class Pump:
    """The pump. Raises PumpError.

    `watch_ports` and `watch_card` add the files that it reads. Until `running`, nothing is served.
    """

    def __init__(self, library: Any, calls: SystemCalls | None = None) -> None:
        self.library = library
        self._functions = calls.functions() if calls is not None else ()
        self.calls = ffi.new("struct pump_calls *", self._functions) if calls is not None else ffi.NULL
        made = library.pump_new(self.calls)
        if not made:
            raise PumpError(ffi.errno, f"the pump cannot start: {os.strerror(ffi.errno)}")
        self.handle = _owned(library, made, "pump_free")
        self.ports_fd: int = library.pump_fd(self.handle, library.PUMP_PORTS)
        """Readable when `fired_ports` has something to return."""
        self._room = ffi.new("struct pump_message[]", ROOM)
        self._cards: dict[int, tuple[Callable[[int], None], Callable[[OSError], None]]] = {}
        self._connectors: dict[int, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._next_number = 0
        self.without_priority = ""
        """Why the pump's thread has no real-time priority; empty: it has one."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the pump's thread during the block, and call what `watch_card` and `add` were given. Raises NoThread.

        After the block, the pump must not be used any more.
        """
        thread = start_thread("pump", self.library.pump_run, self.handle)
        try:
            self.without_priority = _prefer(thread)
            async with trio.open_nursery() as nursery:
                scope: trio.CancelScope = await nursery.start(self._dispatch)
                try:
                    yield
                finally:
                    scope.cancel()
        finally:
            self.library.pump_stop(self.handle)
            with trio.CancelScope(shield=True):
                await run_in_thread_or_here(thread.join)
            self.close()

    def close(self) -> None:
        """Close the pump's files. It must not be used any more: then there is a TypeError."""
        ffi.release(self.handle)
        self.handle = None  # C would use the memory that has been freed

    async def _dispatch(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        fd = self.library.pump_fd(self.handle, self.library.PUMP_REST)
        with trio.CancelScope(shield=True) as scope:  # the last flips end while the connectors' tasks are cancelled
            task_status.started(scope)
            await serve(fd, self._on_readable)

    def _on_readable(self) -> bool:
        for message in self._messages(self.library.PUMP_REST):
            try:
                self._deliver(message)
            except Exception:  # it costs this message; the other connectors go on
                _log.exception("cannot serve what the pump has handed over")
        return False

    def _messages(self, queue: int) -> list[Any]:
        count = self.library.pump_messages(self.handle, queue, self._room, ROOM)
        return [self._room[index] for index in range(count)]

    def _deliver(self, message: Any) -> None:
        library = self.library
        if message.kind in (library.PUMP_LATE, library.PUMP_STILL):
            late, still = self._connectors.get(message.value, (None, None))
            call = late if message.kind == library.PUMP_LATE else still
            if call is not None:
                call()
            return
        card = self._cards.get(message.fd)
        if card is None:
            return
        shown, failed = card
        if message.kind == library.PUMP_SHOWN:
            shown(message.value)
        else:
            failed(OSError(message.error, os.strerror(message.error)))

    # Files

    def watch_ports(self, fd: int) -> None:
        """Read this event-channel file. Raises PumpError."""
        self._watch(fd, is_card=False)

    def fired_ports(self) -> list[int]:
        """Return ports that have fired and that the pump does not serve. Raises OSError if the file cannot be read, and goes on reading."""
        fired = []
        for message in self._messages(self.library.PUMP_PORTS):
            if message.kind == self.library.PUMP_FAILED:
                self._watch(message.fd, is_card=False)
                raise OSError(message.error, os.strerror(message.error))
            fired.append(message.value)
        return fired

    def watch_card(self, fd: int, shown: Callable[[int], None], failed: Callable[[OSError], None]) -> None:
        """Read this card's events. Call `shown` with the serial number of each flip that the pump does not serve; and `failed` when the
        events cannot be read. The card is not watched any more then. Raises PumpError.
        """
        self._watch(fd, is_card=True)
        self._cards[fd] = shown, failed

    def _watch(self, fd: int, *, is_card: bool) -> None:
        error = -self.library.pump_watch(self.handle, fd, is_card)
        if error:
            raise PumpError(error, f"the pump cannot watch a file: {os.strerror(error)}")

    def unwatch(self, fd: int) -> None:
        """Do not read this file any more. Afterwards it may be closed."""
        self.library.pump_unwatch(self.handle, fd)
        self._cards.pop(fd, None)

    # Connectors

    def add(self, late: Callable[[], None], still: Callable[[], None]) -> Any:
        """Return a `struct pump_connector` for `give`. `late` and `still` are called when its flip is late, and when it has not flipped
        for a while. `remove` ends its life.
        """
        self._next_number += 1
        self._connectors[self._next_number] = late, still
        return ffi.new("struct pump_connector *", {"number": self._next_number})

    def remove(self, connector: Any) -> None:
        """Forget a connector, which Python owns."""
        self._connectors.pop(connector.number, None)

    def give(self, connector: Any) -> bool:
        """Make the pump the owner of a connector. Return False, and change nothing, if the pump serves as many as it can."""
        return bool(self.library.pump_give(self.handle, connector))

    def take(self, connector: Any) -> None:
        """Make Python the owner of a connector again. Waits for a flip that the pump is serving at the moment."""
        self.library.pump_take(self.handle, connector)

    def wait_for_step(self) -> None:
        """Return when the pump's thread is between two steps: never, if it hangs in a driver."""
        self.library.pump_take(self.handle, ffi.NULL)

    def peek(self, connector: Any, copy: Any) -> None:
        """Copy what the pump changes of a connector, as it was after the last finished step. Neither waits for the other."""
        self.library.pump_peek(connector, copy)


class Copier:
    """The part of a copying thread that copies steady frames (sinks/copy_thread.py). Raises PumpError."""

    def __init__(self, pump: Pump) -> None:
        self._library = pump.library
        self._pump = pump  # its functions are called
        made = self._library.pump_copier_new(pump.calls)
        if not made:
            raise PumpError(ffi.errno, "no memory for a copying thread")
        self.handle = _owned(self._library, made, "pump_copier_free")
        self._copied = ffi.new("struct pump_copied *")

    def wait(self, seconds: float | None) -> tuple[Any, bool]:
        """Copy steady frames until `poke` is called, a frame cannot be shown, or no frame has come for `seconds`.

        Return what was done (`struct pump_copied`; valid until the next call), and whether the time has passed.
        """
        result = self._library.pump_copier_wait(self.handle, -1.0 if seconds is None else seconds, self._copied)
        return self._copied, result == self._library.PUMP_COPIER_TIMEOUT

    def poke(self) -> None:
        """Make `wait` return, after the frame that it copies. A frame that was handed over just before may wait for the next call."""
        self._library.pump_copier_poke(self.handle)

    @property
    def resting(self) -> bool:
        """Whether no frame waits or is being copied."""
        return bool(self._library.pump_copier_resting(self.handle))

    def set(self, copy: Any) -> None:
        """Set what is copied (`struct pump_copy *`). The copier rests."""
        self._library.pump_copier_set(self.handle, copy)

    def swap(self) -> None:
        """Take note that Python has shown the dumb buffer that the next frame would have been copied into."""
        self._library.pump_copier_swap(self.handle)


def open_pump(calls: SystemCalls | None = None) -> tuple[Pump | None, str]:
    """Return a pump and an empty text; or None, and the reason why there is none.

    Its files are closed at the end of `Pump.running`, or when nothing refers to it any more.
    """
    library, reason = open_library()
    if library is None:
        return None, reason
    try:
        return Pump(library, calls), ""
    except PumpError as error:
        return None, str(error)
