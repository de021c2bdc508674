"""Two guests, each in a process of its own: one flips and measures the response times, the other one floods the daemon."""

from __future__ import annotations

import os
import select
import signal
import time
import traceback
from array import array
from collections.abc import Callable
from struct import Struct
from typing import Final, NoReturn

import trio

from displbe.sim.guest import DisplayBuffer
from displbe.sim.hypervisor import Domain
from displbe.wire.displif import DbufCreate, DbufDestroy, FbAttach, FbDetach, PageFlip, Request, encode_request
from displbe.wire.formats import fourcc
from displbe.wire.ring import FrontControlRing, FrontEventPage

__all__ = ["FLOODS", "Flooder", "Prober", "Process"]

PAUSE: Final = 1e-3
"""Seconds from a flip's event to the next flip, on average: long enough for the daemon to sleep again."""
FLOODS: Final = ("quiet", "full ring", "event storm", "create and destroy")
"""The activities of the flooding guest. When it is quiet it computes: its vCPU is as busy, but it sends nothing to the daemon."""
_COMMAND: Final = Struct("=I")


class Port:
    """A guest's end of an event channel, for a process without an event loop."""

    def __init__(self, domain: Domain, port: int) -> None:
        self.port = port
        peer = domain.peers[port]
        assert peer is not None
        self._backend, self._backend_port = peer

    def notify(self) -> None:
        """EVTCHNOP_send."""
        self._backend.raise_port(self._backend_port)


class Prober:
    """The guest that is measured. It has one flip in flight, as Linux has, and sleeps until the response."""

    def __init__(
        self,
        domain: Domain,
        ring: FrontControlRing,
        events: FrontEventPage,
        ports: tuple[int, int],
        framebuffers: list[int],
    ) -> None:
        self._domain = domain
        self._ring = ring
        self._events = events
        self._requests, self._shown = (Port(domain, port) for port in ports)
        self._framebuffers = framebuffers

    def measure(self, count: int) -> array[float]:
        """Make `count` flips; return the seconds from each request to its response."""
        poll = select.poll()
        poll.register(self._domain.upcall, select.POLLIN)
        times = array("d")
        for number in range(count):
            # Avoids being in step with anything else that has a period of a millisecond.
            time.sleep(PAUSE * (0.5 + (number * 0.618) % 1))
            request = encode_request(PageFlip(number & 0xFFFF, self._framebuffers[number % 2]))
            begun = time.perf_counter()
            if self._ring.put(request):
                self._requests.notify()
            answered = shown = False
            while not (answered and shown):
                if not poll.poll(5000):
                    raise TimeoutError("no answer in 5 s")
                for port in self._domain.take_fired():
                    if port == self._requests.port:
                        while (slot := self._ring.take()) is not None:
                            times.append(time.perf_counter() - begun)
                            answered = True
                            assert slot[4:8] == bytes(4), f"flip refused: {slot.hex()}"
                        self._ring.final_check()
                    else:
                        while self._events.take() is not None:
                            shown = True
                    self._domain.unmask(port)
        return times


class Flooder:
    """The flooding guest. It creates and destroys one buffer, each time under a new cookie."""

    def __init__(
        self, domain: Domain, ring: FrontControlRing, events: FrontEventPage, port: int, buffer: DisplayBuffer
    ) -> None:
        self._domain = domain
        self._ring = ring
        self._port = Port(domain, port)
        self._buffer = buffer
        self._cookie = 0x1000
        self._todo: list[Request] = []
        self.done = 0
        """Answered requests, and sent notifications."""
        self._works: dict[str, Callable[[], None]] = dict(
            zip(FLOODS, (self._compute, self._fill, self._storm, self._churn), strict=True)
        )

    def work(self, what: str) -> None:
        """Do part of the activity, for a millisecond at most."""
        self._works[what]()

    def _compute(self) -> None:
        for _ in range(1000):
            self._cookie ^= 0

    def _storm(self) -> None:
        """Send notifications without a request, as fast as possible."""
        for _ in range(100):
            self._port.notify()
        self.done += 100

    def _fill(self) -> None:
        """Keep the ring full of flips to a framebuffer that does not exist."""
        self._take()
        try:
            while True:
                self._put(PageFlip(0, 0xBAD))
        except BufferError:
            self._port.notify()

    def _churn(self) -> None:
        """Keep the ring full of requests that create, attach, detach and destroy buffers."""
        self._take()
        try:
            while True:
                if not self._todo:
                    self._todo = self._life()
                self._put(self._todo[-1])
                self._todo.pop()
        except BufferError:
            self._port.notify()

    def _life(self) -> list[Request]:
        """Return the requests of a buffer's life, in reverse order."""
        self._cookie += 0x40
        dbuf, fb, buffer = self._cookie, self._cookie + 0x20, self._buffer
        return [
            DbufDestroy(0, dbuf),
            FbDetach(0, fb),
            FbAttach(0, dbuf, fb, 64, 64, fourcc("XR24")),
            DbufCreate(0, dbuf, 64, 64, 32, buffer.size, 0, buffer.directory, 0),
        ]

    def _put(self, request: Request) -> None:
        self._ring.put(encode_request(request))

    def _take(self) -> None:
        while self._ring.take() is not None:
            self.done += 1
        for port in self._domain.take_fired():
            self._domain.unmask(port)


class Process:
    """A guest's process: it is told numbers, and gives bytes back."""

    def __init__(self, play: Callable[[int, int], bytes]) -> None:
        """`play` is called with a number, and with the file from which the next number can be read; it returns the bytes to send back."""
        commands, self._commands = os.pipe()
        self._results, results = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._commands)
            _play(play, commands, results)
        os.close(commands)
        os.close(results)

    def tell(self, number: int) -> None:
        """Send the next number."""
        os.write(self._commands, _COMMAND.pack(number))

    async def result(self, size: int) -> bytes:
        """So many bytes of what it gives back."""
        found = b""
        while len(found) < size:
            await trio.lowlevel.wait_readable(self._results)
            part = os.read(self._results, size - len(found))
            assert part, "a guest's process has ended"
            found += part
        return found

    def close(self) -> None:
        """End the process."""
        os.close(self._commands)
        os.close(self._results)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _play(play: Callable[[int, int], bytes], commands: int, results: int) -> NoReturn:
    try:
        while command := os.read(commands, _COMMAND.size):
            os.write(results, play(_COMMAND.unpack(command)[0], commands))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
