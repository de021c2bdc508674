"""The time and CPU that a key event takes from a device to a guest's page, compared with the simplest loop that does the same.

A second process writes events as a device does, measures when they are in the page, and consumes them as Linux does. This process runs
the whole daemon, and then a bare loop: epoll, python-evdev's read, the slot, the notification. A pipe takes the place of the
device, since the machine may have none.
"""

from __future__ import annotations

import os
import select
import signal
import statistics
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Any, Final, NoReturn

import trio
from evdev.eventio import EventIO

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.input.bindings import Role
from displbe.input.evdev.capabilities import Capabilities, InputEvent, Snapshot
from displbe.input.evdev.device import MIN_READ_INTERVAL
from displbe.input.evdev.nodes import read_events
from displbe.input.settings import InputSettings
from displbe.ops.lag import LoopLag
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Domain, SimHypervisor, Xen
from displbe.sim.input import InputFrontend
from displbe.sim.toolstack import Toolstack
from displbe.wire.kbdif import EVENT_SIZE, IN_SLOTS
from displbe.xen.barriers import SharedMemory

__all__ = ["report"]

ROUNDS: Final = 7
KEYS: Final = 200
AT_MOST: Final = 5.0
"""The daemon's latency, as a multiple of the bare loop's. The same code has 2.0 to 2.9, depending on the machine."""
PAUSE: Final = 1.5 * MIN_READ_INTERVAL
"""Seconds between two events: the backend sleeps before each, and does not take them for a burst."""
PATH: Final = "/dev/input/event0"
EVENT: Final = Struct("@llHHi")
KEY_A: Final = 30
IN_CONS: Final = 0
IN_PROD: Final = 4
_KEY: Final = Struct("<BB2xI32x")


class PipeNode(EventIO):
    """A device node that is a pipe (input.evdev.nodes.DeviceNode); the bare loop reads it with python-evdev."""

    name = "bench"
    capabilities = Capabilities(keys=frozenset(range(1, 128)))
    repeats = True

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self) -> Sequence[InputEvent]:  # type: ignore[override]
        """DeviceNode.read"""
        return read_events(self.fd)

    def snapshot(self) -> Snapshot:
        """DeviceNode.snapshot"""
        return Snapshot()

    def grab(self) -> None:
        """DeviceNode.grab"""

    def ungrab(self) -> None:
        """DeviceNode.ungrab"""

    def set_lamps(self, lamps: dict[int, bool]) -> None:
        """DeviceNode.set_lamps"""

    def close(self) -> None:
        """DeviceNode.close; the pipe stays open for the next node."""


class PipeNodes:
    """The only device (input.evdev.nodes.DeviceNodes)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def paths(self) -> list[str]:
        return [PATH]

    def resolve(self, path: str) -> list[str]:
        return [PATH]

    def name(self, path: str) -> str:
        return "bench"

    def is_absolute(self, path: str) -> bool:
        return False

    def fitness(self, path: str, role: Role) -> int:
        return 1

    def open(self, path: str) -> PipeNode:
        return PipeNode(self._fd)


class Typist:
    """The second process: it writes an event, waits until it is in the page, and consumes it."""

    def __init__(self, pages: list[SharedMemory], pipes: list[int], kicks: list[tuple[Domain, int] | None]) -> None:
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _play(orders, answers, pages, pipes, kicks)
        os.close(orders)
        os.close(answers)

    async def type(self, side: int) -> list[float]:
        """Type KEYS keys for the daemon (0) or the bare loop (1); return the microseconds that each took."""
        os.write(self._orders, bytes((side,)))
        size = KEYS * 8
        data = b""
        while len(data) < size:
            await trio.lowlevel.wait_readable(self._answers)
            data += os.read(self._answers, size - len(data))
        return [number / 1000 for (number,) in Struct("=Q").iter_unpack(data)]

    def close(self) -> None:
        """End the process."""
        os.close(self._orders)
        os.close(self._answers)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _play(
    orders: int, answers: int, pages: list[SharedMemory], pipes: list[int], kicks: list[tuple[Domain, int] | None]
) -> NoReturn:
    try:
        while order := os.read(orders, 1):
            page, pipe, kick = pages[order[0]], pipes[order[0]], kicks[order[0]]
            found = b""
            for number in range(KEYS):
                wait = time.perf_counter() + PAUSE
                while time.perf_counter() < wait:
                    pass
                before = page.load(IN_PROD)
                event = EVENT.pack(0, 0, 1, KEY_A, 1 - number % 2) + EVENT.pack(0, 0, 0, 0, 0)
                begun = time.perf_counter_ns()
                os.write(pipe, event)
                while page.load(IN_PROD) == before:
                    pass
                found += Struct("=Q").pack(time.perf_counter_ns() - begun)
                page.store(IN_CONS, page.load(IN_PROD))
                if kick is not None:
                    kick[0].raise_port(kick[1])
            os.write(answers, found)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


class BareLoop:
    """The bare loop: epoll, python-evdev's read, the slot, `in_prod`, the notification. It checks nothing."""

    def __init__(self, fd: int, page: SharedMemory, guest: Domain, port: int) -> None:
        self._device = PipeNode(fd)
        self._page = page
        self._guest, self._port = guest, port
        self._prod = 0
        self._poll = select.epoll()
        self._poll.register(fd, select.EPOLLIN)

    def run(self, count: int) -> None:
        """Pass on this number of keys."""
        page, end = self._page, self._prod + count
        while self._prod < end:
            self._poll.poll()
            for event in EventIO.read(self._device):
                if event.type == 1:
                    page.write(1024 + self._prod % IN_SLOTS * EVENT_SIZE, _KEY.pack(3, event.value, event.code))
                    self._prod += 1
                    page.store(IN_PROD, self._prod)
                    self._guest.raise_port(self._port)


async def _connect(xen: Xen, domid: int, life: trio.Nursery, *, serve: bool) -> InputFrontend:
    """Return a guest's frontend: connected to the daemon, or with a page that no backend serves."""
    tools = Toolstack(xen.server)
    tools.create_domain(domid)
    await xen.start_domain(domid)
    tools.add_input(domid, {"unique-id": f"K:{PATH}"}, kind="vinput" if serve else "vkbd")
    guest = Guest(xen, domid)
    await life.start(guest.hypervisor.store.run)
    async with (
        trio.open_nursery() as nursery
    ):  # of its kernel, until it is connected; what comes then is for the other process
        nursery.start_soon(guest.hypervisor.channels.run)
        nursery.start_soon(guest.input.run)
        if serve:
            await guest.input.connected.wait()
        else:
            while not hasattr(guest.input, "memory"):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return guest.input


async def _measure(folder: Path) -> list[tuple[list[float], list[float]]]:
    """Return for the daemon and for the bare loop: each round's median microseconds and CPU microseconds per event."""
    pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(2)]
    settings = Settings(
        sink="headless", control=ControlSettings(socket=""), input=InputSettings(devices=[PATH], repeat_rate=0)
    )
    found: list[tuple[list[float], list[float]]] = [([], []), ([], [])]
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        host: SimHypervisor = xen.hypervisor(0)
        daemon = Daemon(settings, host, nodes=PipeNodes(pipes[0][0]))
        await nursery.start(daemon.run)
        fronts = [await _connect(xen, 1, nursery, serve=True), await _connect(xen, 2, nursery, serve=False)]
        while not daemon.evdev.devices:
            await trio.sleep(0.01)
        peers: list[Any] = [xen.domains[1].peers[fronts[0]._port], None]
        pages = [SharedMemory(front._domain.pages(front._page_number, 1)) for front in fronts]
        bare = BareLoop(pipes[1][0], pages[1], xen.domains[2], fronts[1]._port)
        typist = Typist(pages, [write for _, write in pipes], peers)
        try:
            for turn in range(ROUNDS + 1):
                for side in range(2):
                    cpu = time.process_time()
                    if side:
                        os.write(typist._orders, b"\1")
                        bare.run(KEYS)
                        cpu = time.process_time() - cpu
                        data = os.read(typist._answers, KEYS * 8)
                        times = [number / 1000 for (number,) in Struct("=Q").iter_unpack(data)]
                    else:
                        times = await typist.type(0)
                        cpu = time.process_time() - cpu
                    if turn:  # the first round warms the caches
                        found[side][0].append(statistics.median(times))
                        found[side][1].append(cpu / KEYS * 1e6)
        finally:
            typist.close()
        nursery.cancel_scope.cancel()
    for fd in (fd for pipe in pipes for fd in pipe):
        os.close(fd)
    return found


def report(folder: Path) -> bool:
    """Print the table; return whether the daemon is fast enough."""
    sides = trio.run(_measure, folder, clock=LoopLag())
    ratios = [ours / bare for ours, bare in zip(sides[0][0], sides[1][0], strict=True)]
    ratio = statistics.median(ratios)
    print(f"A key from its device to the guest's page [µs], {ROUNDS} rounds of {KEYS} events")
    print(f"{'':12} {'median':>8} {'best':>8} {'worst':>8} {'CPU':>10}")
    for name, (times, cpu) in zip(("displbe", "bare loop"), sides, strict=True):
        print(
            f"{name:12} {statistics.median(times):8.1f} {min(times):8.1f} {max(times):8.1f} {statistics.median(cpu):10.1f}"
        )
    verdict = "good" if ratio <= AT_MOST else "too slow"
    print(f"{'ratio':12} {ratio:8.2f} {min(ratios):8.2f} {max(ratios):8.2f}   at most {AT_MOST}: {verdict}")
    return ratio <= AT_MOST
