"""How late the event loop is beside programs that compute: `python -m tests.bench.lag [PROGRAMS] [SECONDS]`.

The daemon serves four guests on the simulated Xen, which flip without a pause. The longest lag is what systemd's watchdog must be longer
than (`WatchdogSec=` in systemd/displbe.service).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Final

import structlog
import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.lag import LoopLag
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec, Toolstack
from displbe.sinks.headless.settings import HeadlessSettings

__all__ = ["measure"]

GUESTS: Final = 4
MEMORY: Final = 64 << 20
"""Bytes that each program writes to again and again."""
PAGE: Final = 4096


def compute() -> None:
    """Keep a processor busy for ever."""
    memory = bytearray(MEMORY)
    while True:
        for at in range(0, MEMORY, PAGE):
            memory[at] = 1


async def flip(guest: Guest) -> None:
    """Connect, and flip until cancelled."""
    await guest.display.connected.wait()
    _, framebuffer, _ = await guest.display.create_framebuffer(64, 48)
    await guest.display.show(0, framebuffer, 64, 48)
    while True:
        await guest.display.connectors[0].flip(framebuffer)


async def measure(folder: Path, clock: LoopLag, seconds: float) -> float:
    """Return the longest lag of the loop, in seconds."""
    settings = Settings(sink="headless", headless=HeadlessSettings(), control=ControlSettings(socket=""))
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        await nursery.start(Daemon(settings, xen.hypervisor(0)).run)
        tools = Toolstack(xen.server)
        for domid in range(1, GUESTS + 1):
            tools.create_domain(domid)
            await xen.start_domain(domid)
            tools.add_display(domid, [ConnectorSpec(f"BENCH-{domid}", 64, 48)])
            guest = Guest(xen, domid)
            await nursery.start(guest.hypervisor.store.run)
            for task in (guest.hypervisor.channels.run, guest.display.run):
                nursery.start_soon(task)
            nursery.start_soon(flip, guest)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    return clock.worst()


def main() -> None:
    """Print the longest lag."""
    programs, seconds = int((sys.argv[1:] or ["64"])[0]), float((sys.argv[2:] or ["50"])[0])
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    busy = [multiprocessing.Process(target=compute, daemon=True) for _ in range(programs)]
    with contextlib.ExitStack() as stack:
        for program in busy:
            program.start()
            stack.callback(program.kill)
        clock = LoopLag()
        with tempfile.TemporaryDirectory() as folder:
            longest = trio.run(measure, Path(folder), clock, seconds, clock=clock)
    print(f"beside {programs} programs that compute, the loop was late by {longest:.2f} s at most, in {seconds:g} s")


if __name__ == "__main__":
    main()
