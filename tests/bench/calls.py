"""The calls of functions that a flip makes, for each sink: `python -m tests.bench.calls [SINK]`; with a sink, also by function.

A flip here is everything from the guest's request to its event: the request, the response, the frame's way to the screen, the report that
it is there, the event. The guest flips in a process of its own. The Wayland sink has a headless Weston, the X11 sink Xvfb. Calls are those
of all threads, in Python and in C; their number does not depend on the machine, nor on what else it does.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

import structlog
import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sinks.headless_weston import weston
from sinks.x11.xvfb import Xvfb

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.lag import LoopLag
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec, Toolstack
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.x11.settings import X11Settings

from .guest import Flipper, GuestProcess
from .output import bench_sink

__all__ = ["SINKS", "Cost", "Counting", "boot", "connect", "flip_cost", "report"]

FLIPS: Final = 120
SIZE: Final = (64, 64)
_NO_CONTROL: Final = ControlSettings(socket="")


class Counting:
    """Counts calls of functions in the threads that start after it has been made, and in the thread that has made it."""

    def __init__(self) -> None:
        self.count = 0
        self.by_function: Counter[str] = Counter()
        self._active = False
        threading.setprofile(self._on_event)

    def _on_event(self, frame: FrameType, event: str, argument: Any) -> None:
        if self._active and event in ("call", "c_call"):
            self.count += 1
            if event == "call":
                code = frame.f_code
                place = "/".join(Path(code.co_filename).parts[-3:])
                self.by_function[f"{place}:{code.co_qualname}"] += 1
            else:
                self.by_function[f"C {argument.__qualname__}"] += 1

    def __enter__(self) -> None:
        self._active = True
        sys.setprofile(self._on_event)

    def __exit__(self, *_: object) -> None:
        self._active = False
        sys.setprofile(None)

    def close(self) -> None:
        """Count in no new thread."""
        threading.setprofile(None)


class Cost(NamedTuple):
    """What a flip costs."""

    calls: float
    cpu: float
    """Seconds of all threads, without counting."""
    by_function: Counter[str]


async def boot(xen: Xen, nursery: trio.Nursery) -> Guest:
    """Return a guest with one connector, whose kernel does not run yet."""
    tools = Toolstack(xen.server)
    tools.create_domain(1)
    await xen.start_domain(1)
    tools.add_display(1, [ConnectorSpec("BENCH-1", *SIZE)])
    guest = Guest(xen, 1)
    await nursery.start(guest.hypervisor.store.run)
    return guest


async def connect(guest: Guest) -> Flipper:
    """Let a guest's kernel connect and show a framebuffer. Its flips come from a process of its own."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.hypervisor.channels.run)
        nursery.start_soon(guest.display.run)
        await guest.display.connected.wait()
        made = [await guest.display.create_framebuffer(*SIZE) for _ in range(2)]
        made[0][2].pixels[:] = (
            bytes([0x40]) * made[0][2].size
        )  # a frame that is the same as the one before is not copied again
        framebuffers = [framebuffer for _, framebuffer, _ in made]
        await guest.display.show(0, framebuffers[0], *SIZE)
        await trio.sleep(0.3)  # windows are configured, and become visible
        nursery.cancel_scope.cancel()
    connector = guest.display.connectors[0]
    ports = connector.req_port, connector.evt_port
    return Flipper(guest.domain, connector.ring, connector.events, ports, framebuffers, connector._next_id)


async def measure(folder: Path, settings: Settings, flips: int = FLIPS) -> Cost:
    """Measure the flips of a guest whose daemon has these settings."""
    counting = Counting()
    try:
        async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
            await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
            flipper = await connect(await boot(xen, nursery))
            with contextlib.closing(GuestProcess([flipper])) as guests:
                guests.start(0, flips)  # the first flips warm the caches
                await guests.done()
                cpu = time.process_time()
                guests.start(0, flips)
                await guests.done()
                cpu = time.process_time() - cpu
                with counting:
                    guests.start(0, flips)
                    await guests.done()
            nursery.cancel_scope.cancel()
    finally:
        counting.close()
    return Cost(counting.count / flips, cpu / flips, counting.by_function)


Place = Callable[[Path], AbstractAsyncContextManager[Settings]]


@asynccontextmanager
async def _card(folder: Path) -> AsyncIterator[Settings]:
    """A screen that is a pipe: the cost of everything but the sink (output.py)."""
    async with bench_sink():
        yield Settings(sink="headless", control=_NO_CONTROL)


@asynccontextmanager
async def _headless(folder: Path) -> AsyncIterator[Settings]:
    yield Settings(sink="headless", headless=HeadlessSettings(refresh=60), control=_NO_CONTROL)


@asynccontextmanager
async def _shared(folder: Path) -> AsyncIterator[Settings]:
    """Weston maps the guest's pages."""
    async with weston(folder) as compositor:
        shared = WaylandSettings(display=str(compositor.socket), trust_compositor=True)
        yield Settings(sink="wayland", wayland=shared, control=_NO_CONTROL)


@asynccontextmanager
async def _copied(folder: Path) -> AsyncIterator[Settings]:
    """Weston gets copies."""
    async with weston(folder) as compositor:
        copied = WaylandSettings(display=str(compositor.socket))
        yield Settings(sink="wayland", wayland=copied, control=_NO_CONTROL)


@asynccontextmanager
async def _x11(folder: Path) -> AsyncIterator[Settings]:
    with Xvfb.running() as server:
        yield Settings(sink="x11", x11=X11Settings(display=server.display), control=_NO_CONTROL)


SINKS: Final[dict[str, tuple[Place, int]]] = {
    "card": (_card, 158),
    "headless": (_headless, 134),
    "wayland": (_shared, 174),
    "wayland-copy": (_copied, 342),
    "x11": (_x11, 402),
}
"""The sinks -> the context in which each runs, and the limit of the calls for a flip. Versions of Python and trio differ a little."""


async def flip_cost(place: Place) -> Cost:
    """Measure the flips of a guest."""
    with tempfile.TemporaryDirectory(prefix="displbe-bench-") as folder:
        async with place(Path(folder)) as settings:
            return await measure(Path(folder), settings)


def report(*wanted: str) -> bool:
    """Print the calls for a flip. False: there are more than allowed."""
    good = True
    print(f"\ncalls of functions for a flip {'':14} {'calls':>8} {'at most':>8} {'CPU [µs]':>10}")
    for name in wanted or SINKS:
        place, most = SINKS[name]
        cost = trio.run(flip_cost, place, clock=LoopLag())
        verdict = "good" if cost.calls <= most else "too many"
        good &= cost.calls <= most
        print(f"{name:44} {cost.calls:8.1f} {most:8} {cost.cpu * 1e6:10.1f}   {verdict}")
        if wanted:
            for function, count in cost.by_function.most_common(150):
                print(f"{count / FLIPS:8.2f} {function}")
    return good


def main() -> int:
    """Print the calls for a flip. 1: there are too many."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    return 0 if report(*sys.argv[1:]) else 1


if __name__ == "__main__":
    sys.exit(main())
