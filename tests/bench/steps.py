"""How long the loop is blocked while a guest creates a framebuffer of 1920x1080, shows it and flips: 2025 grant references in two pages of
its directory. It is measured with the headless sink, and with the DRM sink, which copies frames, over the tests' model of a card.

Whatever a guest does, the flips of others wait no longer than the longest step of one of the daemon's tasks. A step's time is the elapsed
time: CPU time, and waiting in a system call or for the interpreter's lock. Only the time that other programs take is not counted: the
kernel accounts the time in which the thread could have run and had no processor. The result is the median of all rounds' longest steps.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Final
from unittest.mock import patch

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unit.drm_model import Board

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks import registry
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.drm.sink import DrmSink
from displbe.sinks.headless.settings import HeadlessSettings

__all__ = ["Steps", "report"]

ROUNDS: Final = 15
SIZE: Final = (1920, 1080)
CONNECTOR: Final = "Virtual-1"
REFRESH: Final = 0.01
AT_MOST: Final = 5e-3
"""Seconds."""
_ours: Final = ContextVar("_ours", default=False)
_board: Final = Board(modes=[SIZE])


class _ModelSink(DrmSink):
    """Run the DRM sink on the model."""

    def __init__(self, settings: DrmSettings) -> None:
        devices = Path(settings.device).parent
        super().__init__(settings, _board.open, devices, lambda: None)


class _Passed:
    """Return a clock of the calling thread: seconds, without those in which other programs had its processor."""

    def __init__(self) -> None:
        # Documentation/scheduler/sched-stats.rst: time on the processor, time waiting for one (ns), turns.
        self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)

    def __call__(self) -> float:
        return time.perf_counter() - int(os.pread(self._file, 64, 0).split()[1]) * 1e-9

    def close(self) -> None:
        os.close(self._file)


class Steps(trio.abc.Instrument):
    """The steps of the daemon's tasks: their number, the number of too long ones, the longest one in seconds and its task."""

    def __init__(self, clock: Callable[[], float] = time.thread_time) -> None:
        self.count = self.over = 0
        self.longest = 0.0
        self.task = ""
        self._clock = clock
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = self._clock()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not task.context.get(_ours, False):
            return
        took = self._clock() - self._began
        self.count += 1
        self.over += took > AT_MOST
        if took > self.longest:
            self.longest, self.task = took, task.name.removeprefix("displbe.")


async def _start(nursery: trio.Nursery, run: Callable[..., Awaitable[object]]) -> None:
    """Start the daemon so that its tasks can be recognized."""
    _ours.set(True)
    await nursery.start(run)
    _ours.set(False)


@contextmanager
def _clock() -> Iterator[_Passed]:
    clock = _Passed()
    try:
        yield clock
    finally:
        clock.close()


async def _refreshes() -> None:
    """Return the model's screen."""
    while True:
        await trio.sleep(REFRESH)
        if _board.card is not None:
            _board.card.vblank()


async def measure(folder: Path, settings: Settings) -> list[Steps]:
    """Measure all rounds."""
    found = []
    with _clock() as clock:
        async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
            await _start(nursery, Daemon(settings, xen.hypervisor(0)).run)
            nursery.start_soon(_refreshes)
            async with Guest.booted(xen, 1, ConnectorSpec(CONNECTOR, *SIZE)) as guest:
                await guest.display.connected.wait()
                for _ in range(ROUNDS + 1):
                    steps = Steps(clock)
                    trio.lowlevel.add_instrument(steps)
                    dbuf, framebuffer, buffer = await guest.display.create_framebuffer(*SIZE)
                    await guest.display.show(0, framebuffer, *SIZE)
                    for _ in range(3):
                        await guest.display.connectors[0].flip(framebuffer)
                    await guest.display.hide(0)
                    await guest.display.destroy_framebuffer(dbuf, framebuffer, buffer)
                    trio.lowlevel.remove_instrument(steps)
                    found.append(steps)
            nursery.cancel_scope.cancel()
    return found[1:]  # the first round warms the caches


def _line(name: str, found: list[Steps]) -> bool:
    longest = [one.longest for one in found]
    middle = statistics.median(longest)
    figures = f"{middle * 1e3:8.2f} {min(longest) * 1e3:8.2f} {max(longest) * 1e3:8.2f}"
    task = max(found, key=lambda one: one.longest).task
    steps, over = (sum(figure) for figure in zip(*((one.count, one.over) for one in found), strict=True))
    good = middle <= AT_MOST
    verdict = "good" if good else "too long"
    print(f"{name:12} {figures} {steps:10} {over:8}   {verdict}; the longest in {task}")
    return good


def report(folder: Path) -> bool:
    """Print the figures. False: the loop is blocked for too long."""
    print(
        f"longest step of the loop [ms] while a guest makes, shows, flips and destroys a framebuffer of {SIZE[0]}x{SIZE[1]};"
        f" the median at most {AT_MOST * 1e3:.0f}"
    )
    print(f"{'':12} {'median':>8} {'best':>8} {'worst':>8} {'steps':>10} {'over':>8}")
    (folder / "card0").touch()
    drm = DrmSettings(device=str(folder / "card0"))
    with patch.dict(registry.SINKS, {"drm": (__name__, _ModelSink.__name__, ())}):
        good = [
            _line(settings.sink, trio.run(measure, folder, settings))
            for settings in (
                Settings(sink="headless", headless=HeadlessSettings(refresh=100), control=ControlSettings(socket="")),
                Settings(sink="drm", drm=drm, control=ControlSettings(socket="")),
            )
        ]
    return all(good)
