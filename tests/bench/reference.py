"""The same work in plain Python: an epoll loop for one connector, which checks nothing that the guest writes.

It makes only the system calls that any backend needs: epoll, reading the ports, the commit, notifying the response, rearming the port,
epoll, reading the flip's event, notifying it. (It is the data path of the experiment that was measured in the lab beside displ_be, with
a pipe for the DRM file. The ports are the simulated Xen's for both backends, with the additional cost of its calls.)
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from struct import Struct
from typing import Final

from displbe.sim.hypervisor import Domain
from displbe.xen.barriers import ACQUIRE, RELEASE, SEQ_CST, ffi, libatomic

from .output import EVENT, FLIP_COMPLETE

__all__ = ["PlainLoop"]

_load = libatomic.__atomic_load_4
_store = libatomic.__atomic_store_4
_fence = libatomic.atomic_thread_fence
_HEADER: Final = Struct("<HB")
_COOKIE: Final = Struct("<Q")
_RESPONSE: Final = Struct("<HBxi56x")
_EVENT: Final = Struct("<HB5xQ48x")


class PlainLoop:
    """A backend whose guest has connected. `ports`: our port and the guest's, for requests and for events."""

    def __init__(
        self,
        domain: Domain,
        guest: Domain,
        pages: tuple[memoryview, memoryview],
        ports: tuple[tuple[int, int], tuple[int, int]],
        framebuffers: dict[int, int],
    ) -> None:
        self._domain = domain
        self._guest = guest
        self._ring, self._events = pages
        self._ring_base, self._events_base = (ffi.cast("char *", ffi.from_buffer(page)) for page in pages)
        (self._port, self._guest_port), (_, self._guest_event_port) = ports
        self._framebuffers = framebuffers
        self._operations: dict[int, Callable[[bytes], None]] = {0x15: self._flip}
        self._card, self._commits = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(domain.upcall, select.EPOLLIN)
        self._poll.register(self._card, select.EPOLLIN)
        self._cons = self._prod = self._shown = 0

    def run(self, flips: int) -> None:
        """Serve this number of flips."""
        end = self._shown + flips
        while self._shown < end:
            for fd, _ in self._poll.poll():
                if fd == self._card:
                    self._complete(os.read(fd, 1024))
                elif self._domain.take_fired():
                    self._drain()
                    self._domain.unmask(self._port)

    def _drain(self) -> None:
        while True:
            produced = _load(self._ring_base, ACQUIRE)
            while self._cons != produced:
                at = 64 + 64 * (self._cons & 31)
                request = bytes(self._ring[at : at + 64])
                self._cons += 1
                number, operation = _HEADER.unpack_from(request)
                self._operations[operation](request)
                at = 64 + 64 * (self._prod & 31)
                self._ring[at : at + 64] = _RESPONSE.pack(number, operation, 0)
                self._prod += 1
                _store(self._ring_base + 8, self._prod, RELEASE)
                _fence(SEQ_CST)
                if _load(self._ring_base + 12, ACQUIRE) == self._prod:
                    self._guest.raise_port(self._guest_port)
            _store(self._ring_base + 4, self._cons + 1, RELEASE)
            _fence(SEQ_CST)
            if _load(self._ring_base, ACQUIRE) == self._cons:
                return

    def _flip(self, request: bytes) -> None:
        (cookie,) = _COOKIE.unpack_from(request, 8)
        os.write(self._commits, EVENT.pack(FLIP_COMPLETE, EVENT.size, cookie, self._framebuffers[cookie], 0, 0, 0))

    def _complete(self, events: bytes) -> None:
        for _, _, cookie, *_ in EVENT.iter_unpack(events):
            at = 64 + 64 * (self._shown % 63)
            self._events[at : at + 64] = _EVENT.pack(self._shown & 0xFFFF, 0, cookie)
            self._shown += 1
            _store(self._events_base + 4, self._shown, RELEASE)
            self._guest.raise_port(self._guest_event_port)
