"""How late flips are while the interpreter is busy: `python -m tests.bench.pump`.

The daemon with its pump serves a guest on a card that refreshes by itself (machine.c), beside the yardstick: a loop in C that makes the
same system calls and nothing else, with a guest of its own. Both guests measure, in turns, while the interpreter is quiet, while it answers
`displbectl status` without a pause, while it does not look at its rings for 50 ms at a time, while another guest storms, and while buffers
of 4K are created. What the machine itself delays, it delays for both. The interpreter has a processor, and all threads and processes that a
flip needs have another one, if there are two: what is left is what the interpreter can hold and the pump can wait for. How they share one
processor is measured where instructions are counted (tests/lab/test_counted.py).

999 of 1,000 flips of the pump must come at most 1 ms later than 999 of 1,000 of the yardstick. One flip in a thousand that a busy machine
delays decides this figure, so it is measured up to three times: the machine delays now these flips, now those; the interpreter would delay
the pump's each time.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scenario.cards import card_machine
from unit.drm_model import Board

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.lag import LoopLag
from displbe.ops.settings import ControlSettings
from displbe.pump.library import ffi
from displbe.pump.settings import DaemonSettings
from displbe.sim.guest import DisplayBuffer, FrontConnector, Guest
from displbe.sim.hypervisor import Domain, SimChannels, Xen
from displbe.sim.toolstack import ConnectorSpec, Toolstack
from displbe.sinks import registry
from displbe.wire.displif import PageFlip, encode_request
from displbe.xen.port import Ledger

from .neighbours import Flooder, Port, Process

__all__ = ["report"]

HERTZ: Final = 240
FLIPS: Final = 400
"""Flips of each guest in a turn."""
WARM: Final = 2
"""Flips at the beginning of a turn that do not count: after a pause, Python serves the first one."""
ROUNDS: Final = 3
TRIES: Final = 3
LATER: Final = 1e-3
"""Seconds by which 999 of 1,000 flips may be later than the yardstick's."""
BLOCKED: Final = 0.05
"""Seconds for which the loop does not look at its rings."""
PUMPED, BARE, FLOODING = 1, 3, 4
"""The guests. Domain 2 has the yardstick."""
SCREENS: Final = 8
DOUBLE: Final = 8
_CALLS: Final = (
    ("machine_read", "long(*)(int, void *, unsigned long)"),
    ("machine_rearm", "int(*)(int, uint32_t)"),
    ("machine_notify", "int(*)(int, uint32_t)"),
    ("machine_commit", "int(*)(int, void *)"),
)


class Machine:
    """machine.c, compiled. Its functions are the pump's system calls (`displbe.pump.native.SystemCalls`)."""

    def __init__(self, folder: Path) -> None:
        library = folder / "machine.so"
        source = Path(__file__).with_name("machine.c")
        flags = ("-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
        subprocess.run([os.environ.get("CC", "cc"), *flags, str(source), "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.refreshed = mmap.mmap(-1, 4096)
        """When each screen last showed a new frame, in seconds of CLOCK_MONOTONIC."""

    def functions(self) -> tuple[Any, ...]:
        """Return the members of `struct pump_calls`."""
        addresses = (ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value for name, _ in _CALLS)
        return tuple(ffi.cast(kind, address) for address, (_, kind) in zip(addresses, _CALLS, strict=True))

    def domain(self, number: int, domain: Domain) -> None:
        """Add a domain's event channels."""
        self.library.machine_domain(number, domain.upcall, *map(_address, (domain.pending, domain.masked)))

    def connect(self, number: int, domain: Domain, other: int) -> None:
        """Add the ports that connect two domains."""
        for port, peer in domain.peers.items():
            if peer is not None and peer[0].domid == other:
                self.library.machine_peer(number, port, other, peer[1])

    def start(self, ends: list[int]) -> None:
        """Start the card's refresh; `ends` are the files that its events are written to, by screen."""
        shared = _address(memoryview(self.refreshed))
        files = (ctypes.c_int * SCREENS)(*ends, *[-1] * (SCREENS - len(ends)))
        assert self.library.machine_start(HERTZ, shared, files) == 0


def _address(memory: memoryview) -> ctypes.c_void_p:
    return ctypes.c_void_p(int(ffi.cast("uintptr_t", ffi.from_buffer(memory))))


class Late(NamedTuple):
    """How late flips are, in seconds: sorted times from request to response, and from the screen's refresh to the guest's event."""

    response: list[float]
    event: list[float]

    def words(self) -> str:
        """Return the median, the 99th and 99.9th percentile, and the maximum of both, in microseconds."""
        return "".join(
            f"{1e6 * times[min(len(times) - 1, int(len(times) * part))]:8.0f}"
            for times in self
            for part in (0.5, 0.99, 0.999, 1)
        )

    def within(self, part: float) -> float:
        """Return the larger of the two times that this part of the flips keep."""
        return max(times[int(len(times) * part)] for times in self)


class Pair(NamedTuple):
    """The pump's flips and the yardstick's."""

    ours: Late
    theirs: Late

    def later(self) -> float:
        """Return the seconds by which 999 of 1,000 of the pump's flips are later."""
        return self.ours.within(0.999) - self.theirs.within(0.999)


class Prober:
    """A guest that flips as soon as its frame is shown, and sleeps in between."""

    def __init__(
        self, domain: Domain, connector: FrontConnector, framebuffers: list[int], seen: mmap.mmap, screen: int
    ) -> None:
        self._domain = domain
        self._connector = connector
        self._ports = {Port(domain, connector.req_port).port, connector.evt_port}
        self._requests = Port(domain, connector.req_port)
        self._framebuffers = framebuffers
        self._refreshed = memoryview(seen).cast("d")
        self._screen = screen

    def measure(self, count: int, processors: set[int]) -> array[float]:
        """Make `count` flips on these processors; return the response time and the event's delay of each, in turns."""
        os.sched_setaffinity(0, processors)
        poll = select.poll()
        poll.register(self._domain.upcall, select.POLLIN)
        ring, events = self._connector.ring, self._connector.events
        times = array("d")
        for number in range(count):
            begun = time.monotonic()
            if ring.put(encode_request(PageFlip(number & 0xFFFF, self._framebuffers[number % 2]))):
                self._requests.notify()
            response = event = 0.0
            while not (response and event):
                if not poll.poll(5000):
                    raise TimeoutError("no answer in 5 s")
                now = time.monotonic()
                for port in self._domain.take_fired():
                    if port == self._requests.port:
                        while (slot := ring.take()) is not None:
                            response = now - begun
                            assert slot[4:8] == bytes(4), f"flip refused: {slot.hex()}"
                        ring.final_check()
                    else:
                        while events.take() is not None:
                            event = max(1e-9, now - self._refreshed[self._screen])
                    self._domain.unmask(port)
            if number >= WARM:
                times.extend((response, event))
        return times


async def connect(
    xen: Xen, nursery: trio.Nursery, domid: int, name: str, connected: Callable[[], Awaitable[None]]
) -> tuple[Guest, list[int]]:
    """Let a guest connect and show a framebuffer. The rest is done by processes of their own."""
    tools = Toolstack(xen.server)
    tools.create_domain(domid)
    await xen.start_domain(domid)
    tools.add_display(domid, [ConnectorSpec(name, 64, 48)])
    guest = Guest(xen, domid)
    await nursery.start(guest.hypervisor.store.run)
    async with trio.open_nursery() as kernel:
        kernel.start_soon(guest.hypervisor.channels.run)
        kernel.start_soon(guest.display.run)
        await guest.display.connected.wait()
        await connected()
        framebuffers = [(await guest.display.create_framebuffer(64, 48))[1] for _ in range(2)]
        await guest.display.show(0, framebuffers[0], 64, 48)
        for number in range(8):
            await guest.display.connectors[0].flip(framebuffers[number % 2])
        kernel.cancel_scope.cancel()
    return guest, framebuffers


def yardstick(xen: Xen, machine: Machine) -> tuple[Prober, int]:
    """Start the yardstick with its guest. Return the guest, and the file that its card's events are written to."""
    domain, guest = xen.domains[2], xen.domains[BARE]
    connector = FrontConnector(guest, xen.hypervisor(BARE))
    channels = SimChannels(xen, domain, Ledger())
    remotes = connector.req_port, connector.evt_port
    for remote in remotes:
        guest.offers[remote] = domain.domid
    ports = [channels.bind(BARE, remote, lambda: False).port for remote in remotes]
    machine.domain(2, domain)
    machine.domain(BARE, guest)
    machine.connect(2, domain, BARE)
    first = guest.grants[connector.req_ref].page
    pages = [_address(guest.pages(first + page, 1)) for page in range(2)]
    card, end = os.pipe()
    assert machine.library.machine_bare(2, *pages, *ports, card, SCREENS - 1) == 0
    return Prober(guest, connector, [1, 2], machine.refreshed, SCREENS - 1), end


class Interpreter:
    """What keeps the daemon's interpreter busy."""

    def __init__(self, daemon: Daemon, flooding: Guest) -> None:
        self._daemon = daemon
        self._flooding = flooding
        self.works: dict[str, Callable[[], AsyncIterator[None]]] = {
            "quiet": self._nothing,
            "status in a loop": self._status,
            "the loop stands still": self._block,
            "a neighbour storms": self._nothing,
            "buffers of 4K": self._create,
        }

    async def _nothing(self) -> AsyncIterator[None]:
        while True:
            await trio.sleep(0.05)
            yield

    async def _status(self) -> AsyncIterator[None]:
        while True:
            await self._daemon.commands.status()
            yield

    async def _block(self) -> AsyncIterator[None]:
        while True:
            end = time.monotonic() + BLOCKED
            while time.monotonic() < end:
                sum(range(1000))
            await trio.sleep(0.005)
            yield

    async def _create(self) -> AsyncIterator[None]:
        buffer = DisplayBuffer(self._flooding.domain, 3840 * 2160 * 4)
        while True:
            mapped = await self._daemon.hypervisor.map_buffer(FLOODING, buffer.refs, dmabuf=False)
            await mapped.map()
            await mapped.aclose()
            yield

    async def busy(self, work: str) -> None:
        """Keep the interpreter busy until cancelled."""
        async for _ in self.works[work]():
            await trio.lowlevel.checkpoint()


def flood(flooder: Flooder, works: int, commands: int) -> bytes:
    """Storm (1) or do nothing (0) until the next command."""
    while not select.select([commands], [], [], 0 if works else None)[0]:
        flooder.work("event storm")
    return bytes(1)


@contextlib.contextmanager
def processors() -> Iterator[set[int]]:
    """Run this thread, and all that are started later, on the machine's first processor. Yield the other ones, if there are any."""
    first, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {first})
    try:
        yield set(others) or {first}
    finally:
        os.sched_setaffinity(0, {first, *others})


def move_flips(to: set[int]) -> None:
    """Run the pump's thread, and the ones that machine.c has started, on these processors, all with the pump's priority."""
    (pump,) = (thread.native_id or 0 for thread in threading.enumerate() if thread.name == "pump")
    policy, priority = os.sched_getscheduler(pump), os.sched_getparam(pump)
    python = {thread.native_id for thread in threading.enumerate()} - {pump}
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread not in python:
            os.sched_setaffinity(thread, to)
            os.sched_setscheduler(thread, policy, priority)


class Guests(NamedTuple):
    """The processes of the pump's guest, the yardstick's, and the one that storms."""

    ours: Process
    theirs: Process
    storm: Process

    async def flips(self) -> Pair:
        """Let the two measure in turns."""
        both = array("d"), array("d")
        for _ in range(ROUNDS):
            for process, found in zip((self.ours, self.theirs), both, strict=True):
                process.tell(FLIPS)
                found.frombytes(await process.result(2 * (FLIPS - WARM) * DOUBLE))
        return Pair(*map(_late, both))

    async def beside(self, work: str, interpreter: Interpreter) -> Pair:
        """Measure while the interpreter does this work, again if flips were late."""
        async with trio.open_nursery() as busy:
            busy.start_soon(interpreter.busy, work)
            self.storm.tell(int("storms" in work))
            for _ in range(TRIES):
                if (found := await self.flips()).later() <= LATER:
                    break
            busy.cancel_scope.cancel()
        self.storm.tell(0)
        await self.storm.result(1)
        return found


async def measure(folder: Path, others: set[int]) -> dict[str, Pair]:
    """Return how late the flips are, by what the interpreter does."""
    machine, board = Machine(folder), Board(connectors=2)
    settings = Settings(sink="drm", daemon=DaemonSettings(pump="auto"), control=ControlSettings(socket=""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            registry.SINKS, "drm", ("displbe.sinks.drm.sink", "DrmSink", ())
        )  # other measurements leave their own there
        async with (
            card_machine(folder, patch, board, HERTZ),
            Xen(folder).running() as xen,
            trio.open_nursery() as nursery,
        ):
            hypervisor = xen.hypervisor(0)
            patch.setattr(hypervisor, "system_calls", lambda: machine)
            daemon = Daemon(settings, hypervisor)
            machine.library.machine_own(hypervisor.channels.fd)
            machine.domain(0, xen.domains[0])
            await nursery.start(daemon.run)
            await xen.start_domain(2)
            await xen.start_domain(BARE)
            plain, plain_end = yardstick(xen, machine)

            async def start() -> None:
                """Begin to refresh the screens once the card has been opened for the first guest."""
                while board.card is None or board.card.fd < 0:
                    await trio.sleep(0.01)
                ends = [-1] * SCREENS
                ends[0], ends[1], ends[SCREENS - 1] = board.card.event_end, board.card.event_end, plain_end
                machine.start(ends)

            for domid in (PUMPED, FLOODING):  # their first notifications find the peers
                nursery.start_soon(_know_peers, machine, xen, domid)
            guest, framebuffers = await connect(xen, nursery, PUMPED, "Virtual-1", start)
            flooding, _ = await connect(xen, nursery, FLOODING, "Virtual-2", trio.lowlevel.checkpoint)
            pumped = Prober(guest.domain, guest.display.connectors[0], framebuffers, machine.refreshed, 0)
            neighbour = flooding.display.connectors[0]
            storm = Flooder(
                flooding.domain,
                neighbour.ring,
                neighbour.events,
                neighbour.req_port,
                DisplayBuffer(flooding.domain, 4096),
            )
            interpreter = Interpreter(daemon, flooding)
            move_flips(others)
            with (
                contextlib.closing(Process(lambda count, _: pumped.measure(count, others).tobytes())) as ours,
                contextlib.closing(Process(lambda count, _: plain.measure(count, others).tobytes())) as theirs,
                contextlib.closing(Process(lambda works, commands: flood(storm, works, commands))) as other,
            ):
                guests = Guests(ours, theirs, other)
                found = {work: await guests.beside(work, interpreter) for work in interpreter.works}
            nursery.cancel_scope.cancel()
        machine.library.machine_stop()
    return found


async def _know_peers(machine: Machine, xen: Xen, domid: int) -> None:
    """Tell machine.c the ports of a guest as soon as they are bound, until cancelled."""
    while True:
        if domid in xen.domains:
            machine.domain(domid, xen.domains[domid])
            machine.connect(0, xen.domains[0], domid)
        await trio.sleep(0.001)


def _late(times: array[float]) -> Late:
    return Late(sorted(times[0::2]), sorted(times[1::2]))


def report(folder: Path) -> bool:
    """Print the table. False: what the interpreter does makes flips late."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with processors() as others:
        found = trio.run(measure, folder, others, clock=LoopLag())
    print(f"\nFlips at {HERTZ} Hz, {ROUNDS * (FLIPS - WARM)} of each [µs]; request to response, and refresh to event")
    print(f"{'':42}{'median':>8}{'p99':>8}{'p99.9':>8}{'max':>8}{'median':>8}{'p99':>8}{'p99.9':>8}{'max':>8}")
    for work, pair in found.items():
        later = pair.later()
        print(f"{work:26}{'the pump':16}{pair.ours.words()}")
        print(f"{'':26}{'the yardstick':16}{pair.theirs.words()}")
        print(
            f"{'':26}p99.9 {1e6 * later:+8.0f}, at most {1e6 * LATER:+.0f}: {'good' if later <= LATER else 'too much'}"
        )
    return all(pair.later() <= LATER for pair in found.values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.exit(not report(Path(name)))
