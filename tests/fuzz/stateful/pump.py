"""The compiled pump without its thread, so that a seed makes the same decisions again, and its flips are late in virtual time.

Tasks of the event loop read the files, and call the pump's own functions for a connector that it owns. The copying threads are tasks, too
(virtual.py); they call the pump's copying function.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import trio
from unit.drm_model import Board

from displbe.display.times import clock
from displbe.pump.library import ffi, open_library
from displbe.pump.native import Pump
from displbe.sim.hypervisor import SimHypervisor

__all__ = ["LoopPump"]

LOOK: Final = 0.05
"""Seconds between two looks for late flips and still screens."""
_EVENT: Final = struct.Struct("=IIQ16x")
_FLIP_COMPLETE: Final = 2


class LoopPump(Pump):
    """The pump of a machine. Raises PumpError."""

    def __init__(self, hypervisor: SimHypervisor, board: Board) -> None:
        library, reason = open_library()
        assert library is not None, reason
        self.is_copying = False
        """Whether a copying thread makes the commits at the moment: the screens are refreshed while it waits for them."""
        self.copies: dict[int, Callable[[], None]] = {}
        """Called when a frame is to be copied, by the copier's address."""
        self.flips = 0
        """Requests that it has served."""
        self._domain = hypervisor.domain
        self._board = board
        self._owned: dict[int, tuple[Any, float]] = {}
        """The connectors, with the time of the last flip, by number."""
        self._readers: dict[int, trio.CancelScope] = {}
        hypervisor.commit = self._commit
        super().__init__(library, hypervisor.system_calls())

    def _commit(self, fd: int, argument: Any) -> int:
        failed = self._board.commit(fd, argument)
        if failed == -errno.EBUSY and self.is_copying:
            self._board.vblank()
        return failed

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Pump.running"""
        scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._look_at_times, scope)
        try:
            yield
        finally:
            scope.cancel()
            self.close()
        await trio.lowlevel.checkpoint()

    # Files

    def watch_ports(self, fd: int) -> None:
        """Pump.watch_ports"""
        self.ports_fd = fd

    def fired_ports(self) -> list[int]:
        """Pump.fired_ports"""
        return [port for port in self._domain.take_fired() if not self._serve(port)]

    def _serve(self, port: int) -> bool:
        for number, (connector, _) in list(self._owned.items()):
            if connector.port == port:
                before = connector.flips
                is_served = bool(self.library.pump_request(self.handle, connector))
                if connector.flips != before:
                    self.flips += 1
                    self._owned[number] = connector, trio.current_time()
                    if connector.copier:
                        self.copies[int(ffi.cast("uintptr_t", connector.copier))]()
                return is_served
        return False

    def watch_card(self, fd: int, shown: Callable[[int], None], failed: Callable[[OSError], None]) -> None:
        """Pump.watch_card"""
        self._readers[fd] = scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._read, fd, scope, shown, failed)

    async def _read(
        self, fd: int, scope: trio.CancelScope, shown: Callable[[int], None], failed: Callable[[OSError], None]
    ) -> None:
        with scope, contextlib.suppress(trio.ClosedResourceError):
            while True:
                await trio.lowlevel.wait_readable(fd)
                try:
                    data = os.read(fd, 1024)
                except BlockingIOError:
                    continue
                except OSError as error:
                    failed(error)
                    return
                if not data:
                    failed(OSError(errno.ENODEV, os.strerror(errno.ENODEV)))
                    return
                for kind, _, serial in _EVENT.iter_unpack(data):
                    if kind == _FLIP_COMPLETE and not self._end(fd, serial):
                        shown(serial)

    def _end(self, card: int, serial: int) -> bool:
        for connector, _ in list(self._owned.values()):
            if connector.card == card and connector.serial == serial:
                return bool(self.library.pump_shown(self.handle, connector))
        return False

    def unwatch(self, fd: int) -> None:
        """Pump.unwatch"""
        if fd in self._readers:
            self._readers.pop(fd).cancel()

    # Connectors

    def give(self, connector: Any) -> bool:
        """Pump.give"""
        self._owned[connector.number] = connector, trio.current_time()
        return True

    def take(self, connector: Any) -> None:
        """Pump.take"""
        _, begun = self._owned.pop(connector.number, (None, trio.current_time()))
        connector.begun = clock() - (trio.current_time() - begun)  # the flip is as old as in virtual time

    def peek(self, connector: Any, copy: Any) -> None:
        """Pump.peek"""
        ffi.memmove(copy, connector, ffi.sizeof("struct pump_connector"))

    async def _look_at_times(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await trio.sleep(LOOK)
                self._look()

    def _look(self) -> None:
        """Find late flips and still screens (serve_times in pump.c)."""
        for number, (connector, begun) in list(self._owned.items()):
            is_pending = connector.state == self.library.PUMP_PENDING
            limit = connector.late if is_pending else connector.still
            if 0 < limit <= trio.current_time() - begun:
                late, still = self._connectors[number]
                (late if is_pending else still)()
