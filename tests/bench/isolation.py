"""The response time of one guest's requests, with and without another guest that floods the daemon.

Quiet and flooded phases are short and alternate, so that variations of the machine's speed affect both alike.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from array import array
from pathlib import Path
from typing import Final

import structlog
import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.lag import LoopLag
from displbe.ops.log import RateLimit
from displbe.sim.guest import DisplayBuffer, Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec, Toolstack

from .neighbours import FLOODS, Flooder, Prober, Process
from .output import bench_sink

__all__ = ["report"]

ROUNDS: Final = 40
FLIPS: Final = 50
"""Flips in each phase."""
AT_MOST: Final = 3.0
GOOD: Final = 1
BAD: Final = 2
DOUBLE: Final = 8


def percentile(times: array[float], percent: int) -> float:
    """Return a percentile of sorted times."""
    return sorted(times)[min(len(times) * percent // 100, len(times) - 1)]


async def boot(xen: Xen, nursery: trio.Nursery, domid: int) -> Guest:
    """Return a guest with one connector, whose kernel does not run yet."""
    tools = Toolstack(xen.server)
    tools.create_domain(domid)
    await xen.start_domain(domid)
    tools.add_display(domid, [ConnectorSpec(f"BENCH-{domid}", 64, 64)])
    guest = Guest(xen, domid)
    await nursery.start(guest.hypervisor.store.run)
    return guest


async def guests(xen: Xen, nursery: trio.Nursery) -> tuple[Prober, Flooder]:
    """Let both guests connect. Everything after that is done by processes of their own."""
    good, bad = [await boot(xen, nursery, domid) for domid in (GOOD, BAD)]
    async with trio.open_nursery() as kernels:
        for guest in (good, bad):
            kernels.start_soon(guest.hypervisor.channels.run)
            kernels.start_soon(guest.display.run)
            await guest.display.connected.wait()
        framebuffers = [(await good.display.create_framebuffer(64, 64))[1] for _ in range(2)]
        await good.display.show(0, framebuffers[0], 64, 64)
        buffer = DisplayBuffer(bad.domain, 64 * 64 * 4)
        kernels.cancel_scope.cancel()
    left, right = good.display.connectors[0], bad.display.connectors[0]
    prober = Prober(good.domain, left.ring, left.events, (left.req_port, left.evt_port), framebuffers)
    return prober, Flooder(bad.domain, right.ring, right.events, right.req_port, buffer)


def flood(flooder: Flooder, what: int, commands: int) -> bytes:
    """Let the flooding guest do this until the next command; return how much it did."""
    before = flooder.done
    while not select.select([commands], [], [], 0)[0]:
        flooder.work(FLOODS[what])
    return (flooder.done - before).to_bytes(DOUBLE, "little")


class Case:
    """The effect of one kind of flood on the other guest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.times: array[float] = array("d")
        self.done = 0
        self.seconds = 0.0

    def ratio(self, quiet: Case) -> float:
        """The increase of the 99th percentile over that of quiet phases."""
        return percentile(self.times, 99) / percentile(quiet.times, 99)

    def row(self, quiet: Case) -> str:
        """Return a line of the table."""
        half, most, last = (1e6 * percentile(self.times, p) for p in (50, 99, 100))
        return (
            f"{self.name:20}{half:9.0f}{most:9.0f}{last:9.0f}{self.ratio(quiet):8.2f}{self.done / self.seconds:10.0f}"
        )


async def measure(folder: Path) -> list[Case]:
    """Measure all cases."""
    cases = [Case(name) for name in FLOODS]
    async with bench_sink(), Xen(folder).running() as xen, trio.open_nursery() as nursery:
        await nursery.start(Daemon(Settings(sink="headless"), xen.hypervisor(0)).run)
        prober, flooder = await guests(xen, nursery)
        with (
            contextlib.closing(Process(lambda count, _: prober.measure(count).tobytes())) as good,
            contextlib.closing(Process(lambda what, commands: flood(flooder, what, commands))) as bad,
        ):
            bad.tell(0)
            for round in range(ROUNDS + 1):
                for number, case in enumerate(cases):
                    bad.tell(number)
                    await bad.result(DOUBLE)  # of the pause
                    begun = time.perf_counter()
                    good.tell(FLIPS)
                    times = array("d", await good.result(FLIPS * DOUBLE))
                    bad.tell(0)  # ends the flood
                    done = int.from_bytes(await bad.result(DOUBLE), "little")
                    if round:  # the first round warms the caches
                        case.times += times
                        case.done += done
                        case.seconds += time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    assert all(case.done > 5 * ROUNDS for case in cases[1:]), "a flood that was none"
    return cases


def report(folder: Path) -> bool:
    """Print the table. False: a flood delays the other guest too much."""
    with open(os.devnull, "w") as nowhere:
        # As in the daemon: lines that a guest causes are written at a limited rate.
        structlog.configure(
            processors=[RateLimit(), structlog.processors.JSONRenderer()],
            logger_factory=structlog.PrintLoggerFactory(nowhere),
        )
        quiet, *floods = trio.run(measure, folder, clock=LoopLag())
    ratio = max(case.ratio(quiet) for case in floods)
    print(f"\nA guest's flip, from request to response [µs], {ROUNDS} rounds of {FLIPS}, while another guest is…")
    print(f"{'':20}{'median':>9}{'p99':>9}{'max':>9}{'ratio':>8}{'done/s':>10}")
    for case in (quiet, *floods):
        print(case.row(quiet))
    print(f"{'ratio of p99':46}{ratio:9.2f}   at most {AT_MOST}: {'good' if ratio <= AT_MOST else 'too much'}")
    return ratio <= AT_MOST
