"""The cost of operation: the time of `displbectl status` and its effect on guests' flips, the time of the daemon's start, its memory.

The limits are for CPU time, the median of all rounds, since other programs disturb some of them, and for its ratio to the same of
something simple that is measured in between: a slow machine is no slow displbe. The table shows as well what the median hides: the
worst round, the worst of an equal time without `displbectl`, the elapsed time, and the latency of the flips, each of which is shown
at a refresh, 60 times a second.
"""

from __future__ import annotations

import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.process import exempt_from_gc
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.headless.settings import HeadlessSettings

from .steps import Steps, _start

__all__ = ["report"]

CONNECTORS: Final = (8, 1, 1, 1)
"""Connectors of each guest."""
ROUNDS: Final = 20
TRIES: Final = 5
ANSWER: Final = 2.0
"""CPU that `displbectl status` may take, including Python's start, as a multiple of a program's that only imports `CLIENT`."""
CLIENT: Final = "import argparse, socket, msgspec"
STEP: Final = 2.5
"""The longest step of the loop while it answers, as a multiple of the longest without."""
START: Final = 1.8
"""CPU and elapsed time from the start to READY=1, as a multiple of those of a program that only imports `DAEMON`."""
DAEMON: Final = "import trio, structlog, msgspec"
MEMORY: Final = 30.0
"""MiB of resident memory with one guest, all in all, with the simulated Xen and its guest, which take about 1 MiB. A board of 512 MiB has
not much more for everything in its dom0. Debian 12's Python 3.11 itself takes 8, trio 10, structlog and msgspec 4, displbe 6.
"""
CTL: Final = (sys.executable, "-c", "import sys; from displbe.ctl.main import main; sys.exit(main())")


class Round:
    """The measurements during `displbectl status`, and during an equal time without it."""

    def __init__(self) -> None:
        self.cpu = 0.0
        """Of displbectl, in seconds."""
        self.bare = 0.0
        """Of a program that only imports `CLIENT`."""
        self.wall = 0.0
        self.asked, self.quiet = Steps(), Steps()
        self.flips: dict[Steps, list[float]] = {self.asked: [], self.quiet: []}


async def _flip(guest: Guest, index: int, took: list[float]) -> None:
    width, height = 64, 48
    buffers = [await guest.display.create_framebuffer(width, height) for _ in range(2)]
    await guest.display.show(index, buffers[0][1], width, height)
    number = 0
    while True:
        number += 1
        began = time.perf_counter()
        await guest.display.connectors[index].flip(buffers[number % 2][1])
        took.append(time.perf_counter() - began)


async def _boot(
    xen: Xen, domid: int, connectors: int, took: list[float], *, task_status: trio.TaskStatus[Guest]
) -> None:
    specs = [ConnectorSpec(f"BENCH-{domid}-{index}", 64, 48) for index in range(connectors)]
    async with Guest.booted(xen, domid, *specs) as guest:
        await guest.display.connected.wait()
        task_status.started(guest)
        async with trio.open_nursery() as nursery:
            for index in range(connectors):
                nursery.start_soon(_flip, guest, index, took)


async def measure_status(folder: Path) -> list[Round]:
    """Measure all rounds."""
    path = str(folder / "control")
    settings = Settings(sink="headless", headless=HeadlessSettings(refresh=60), control=ControlSettings(socket=path))
    took: list[float] = []
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        await _start(nursery, Daemon(settings, xen.hypervisor(0)).run)
        exempt_from_gc()
        async with trio.open_nursery() as guests:
            for domid, connectors in enumerate(CONNECTORS, 1):
                await guests.start(_boot, xen, domid, connectors, took)
            await trio.sleep(1.5)
            await _round(path, took)  # warms the caches
            rounds = [await _round(path, took) for _ in range(ROUNDS)]
            guests.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return rounds


async def _round(path: str, took: list[float]) -> Round:
    made = Round()

    async def sleep() -> None:
        await trio.sleep(made.wall)

    async def ask() -> None:
        made.cpu = await _run(*CTL, "--socket", path, "status")

    began = time.perf_counter()
    for steps, wait in ((made.asked, ask), (made.quiet, sleep)):
        took.clear()
        trio.lowlevel.add_instrument(steps)
        await wait()
        trio.lowlevel.remove_instrument(steps)
        made.flips[steps] += took
        made.wall = made.wall or time.perf_counter() - began
    made.bare = await _run(sys.executable, "-c", CLIENT)
    return made


async def _run(*command: str) -> float:
    """Run a program, and return the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    await trio.run_process(command, capture_stdout=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def _started(folder: Path, *, guest: bool) -> Iterator[tuple[subprocess.Popen[bytes], float, float]]:
    """Start a daemon; yield its process with the CPU time and the elapsed time until READY=1."""
    for left in folder.iterdir():  # sockets of the daemon that was killed
        left.unlink()
    config = folder / "displbe.toml"
    config.write_text(f"sink = 'headless'\n[control]\nsocket = '{folder}/control'\n[log]\nlevel = 'warning'\n")
    environment = os.environ | {"NOTIFY_SOCKET": str(folder / "notify"), "DISPLBE_BENCH_FOLDER": str(folder)}
    if guest:
        environment["DISPLBE_BENCH_GUEST"] = "1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(folder / "notify"))
        ear.settimeout(30)
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "tests.bench.whole", "--config", str(config)],
            env=environment,
            stdout=subprocess.PIPE,
        ) as daemon:
            try:
                while b"READY=1" not in ear.recv(4096):
                    pass
                yield daemon, _cpu(daemon.pid), time.perf_counter() - began
            finally:
                daemon.kill()


def _cpu(pid: int) -> float:
    """Return the CPU seconds that a process has used (proc_pid_stat(5): utime, stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Return a process's resident memory in MiB, without mapped pages of guests, which are shared memory here."""
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))) / 1024


def _print(what: str, unit: str, found: float, limit: float, more: str = "") -> bool:
    good = found <= limit
    print(f"{what:44} {found:8.2f} {unit}, at most {limit:g}: {'good' if good else 'too much'}{more}")
    return good


def _spread(values: list[float]) -> str:
    half, most, worst = statistics.median(values), sorted(values)[len(values) * 99 // 100], max(values)
    return f"half {half * 1e3:.1f}, 99 of 100 {most * 1e3:.1f}, worst {worst * 1e3:.1f} ms"


def report(folder: Path) -> bool:
    """Print the figures. False: one exceeds its limit."""
    rounds = trio.run(measure_status, folder)
    steps, quiet = ([one.longest for one in them] for them in zip(*((r.asked, r.quiet) for r in rounds), strict=True))
    starts, bare = [], []
    for _ in range(TRIES):
        with _started(folder, guest=False) as (_, cpu, wall):
            starts.append((cpu, wall))
        began = time.perf_counter()
        bare.append((trio.run(_run, sys.executable, "-c", DAEMON), time.perf_counter() - began))
    with _started(folder, guest=True) as (daemon, *_):
        assert daemon.stdout is not None
        daemon.stdout.readline()
        memory = _memory(daemon.pid)
    print(f"operating: {len(CONNECTORS)} guests with {sum(CONNECTORS)} connectors flip at 60 Hz")
    walls = sorted(one.wall for one in rounds)
    answer, client = (
        statistics.median(values) for values in zip(*((one.cpu, one.bare) for one in rounds), strict=True)
    )
    step, without = statistics.median(steps), statistics.median(quiet)
    (start, start_wall), (daemon_bare, bare_wall) = (
        tuple(statistics.median(values) for values in zip(*them, strict=True)) for them in (starts, bare)
    )
    good = all(
        [
            _print(
                "displbectl status, from its start (CPU)",
                "of bare imports",
                answer / client,
                ANSWER,
                f"; {answer * 1e3:.0f} ms; by the clock {walls[0] * 1e3:.0f} to {walls[-1] * 1e3:.0f}",
            ),
            _print(
                "longest step of the loop meanwhile (CPU)",
                "of the longest else",
                step / without,
                STEP,
                f"; {step * 1e3:.2f} ms, else {without * 1e3:.2f}; worst {max(steps) * 1e3:.2f}, else {max(quiet) * 1e3:.2f}",
            ),
            _print(
                "from the daemon's start to READY=1 (CPU)",
                "of bare imports",
                start / daemon_bare,
                START,
                f"; {start:.2f} s",
            ),
            _print(
                "from the daemon's start to READY=1 (clock)",
                "of bare imports",
                start_wall / bare_wall,
                START,
                f"; {min(wall for _, wall in starts):.2f} to {max(wall for _, wall in starts):.2f} s",
            ),
            _print(f"resident memory, one guest, {sys.version.split()[0]}", "MiB", memory, MEMORY),
        ]
    )
    print(f"{'flips meanwhile':44} {_spread([took for one in rounds for took in one.flips[one.asked]])}")
    print(f"{'flips without it':44} {_spread([took for one in rounds for took in one.flips[one.quiet]])}")
    return good


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="displbe-bench-") as name:
        sys.exit(not report(Path(name)))
