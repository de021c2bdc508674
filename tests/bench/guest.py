"""Guests that flip in a process of their own, so that this process' CPU time is that of the backend only."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Sequence
from struct import Struct
from typing import Final, NoReturn

import trio

from displbe.sim.hypervisor import Domain
from displbe.wire.displif import PageFlip, encode_request
from displbe.wire.ring import FrontControlRing, FrontEventPage

__all__ = ["Flipper", "GuestProcess"]

DRAWING: Final = 1e-3
"""Seconds."""
_COMMAND: Final = Struct("=II")


class Flipper:
    """A guest's display driver, reduced to flips between existing framebuffers."""

    def __init__(
        self,
        domain: Domain,
        ring: FrontControlRing,
        events: FrontEventPage,
        ports: tuple[int, int],
        framebuffers: Sequence[int],
        number: int,
    ) -> None:
        self._domain = domain
        self._ring = ring
        self._events = events
        self._port, self._event_port = ports
        self._framebuffers = framebuffers
        self._number = number

    def flip(self, count: int) -> None:
        """Make `count` flips, each some time after the one before has been answered and shown.

        It spins where a kernel would sleep: the cost of waking another process is not the backend's, and depends on the
        backend's speed. It draws before it flips, so that the backend sleeps before each flip, as with a real screen.
        """
        pending = self._domain.pending
        for _ in range(count):
            drawn = time.perf_counter() + DRAWING
            while time.perf_counter() < drawn:
                pass
            cookie = self._framebuffers[self._number % 2]
            peer = self._domain.peers[self._port]
            if self._ring.put(encode_request(PageFlip(self._number & 0xFFFF, cookie))) and peer is not None:
                peer[0].raise_port(peer[1])
            self._number += 1
            waits = 2
            while waits:
                while not (pending[self._port] or pending[self._event_port]):
                    if os.getppid() == 1:
                        return
                for port in self._domain.take_fired():
                    waits -= self._responses() if port == self._port else self._shown()
                    self._domain.unmask(port)

    def _responses(self) -> int:
        found = 0
        while True:
            while (slot := self._ring.take()) is not None:
                found += 1
                assert slot[4:8] == bytes(4), f"flip refused: {slot.hex()}"
            if not self._ring.final_check():
                return found

    def _shown(self) -> int:
        found = 0
        while self._events.take() is not None:
            found += 1
        return found


class GuestProcess:
    """The process. It runs one of the guests at a time."""

    def __init__(self, guests: Sequence[Flipper]) -> None:
        commands, self._commands = os.pipe()
        self._done, done = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._commands)
            _play(guests, commands, done)
        os.close(commands)
        os.close(done)

    def start(self, guest: int, flips: int) -> None:
        """Let a guest flip this number of times."""
        os.write(self._commands, _COMMAND.pack(guest, flips))

    async def done(self) -> None:
        """Wait until the guest has done all its flips."""
        await trio.lowlevel.wait_readable(self._done)
        assert os.read(self._done, 1), "the guests' process has ended"

    def close(self) -> None:
        """End the process."""
        os.close(self._commands)
        os.close(self._done)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _play(guests: Sequence[Flipper], commands: int, done: int) -> NoReturn:
    try:
        while command := os.read(commands, _COMMAND.size):
            number, flips = _COMMAND.unpack(command)
            guests[number].flip(flips)
            os.write(done, b".")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
