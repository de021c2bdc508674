"""How long the loop is held while a guest makes a framebuffer of 1920x1080: 2025 grant references, in two pages of its directory.

Whatever a guest does, the others' flips wait no longer than the longest step of one of the daemon's tasks. A step's time is the CPU time of
the loop's thread: what other programs of this machine take away does not count. Of each round the longest step counts, of all rounds
the median.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Final

import trio

from displbe.config import HeadlessSettings, Settings
from displbe.daemon import Daemon
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec

__all__ = ["Steps", "report"]

ROUNDS: Final = 15
SIZE: Final = (1920, 1080)
AT_MOST: Final = 5e-3
"""Seconds."""
_ours: Final = ContextVar("_ours", default=False)


class Steps(trio.abc.Instrument):
    """The steps of the daemon's tasks: how many there were, how many too long, the longest in seconds and its task."""

    def __init__(self) -> None:
        self.count = self.over = 0
        self.longest = 0.0
        self.task = ""
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not task.context.get(_ours, False):
            return
        took = time.thread_time() - self._began
        self.count += 1
        self.over += took > AT_MOST
        if took > self.longest:
            self.longest, self.task = took, task.name.removeprefix("displbe.")


async def _start(nursery: trio.Nursery, run: Callable[..., Awaitable[object]]) -> None:
    """Start the daemon such that its tasks are known."""
    _ours.set(True)
    await nursery.start(run)
    _ours.set(False)


async def measure(folder: Path) -> list[Steps]:
    """Round by round."""
    found = []
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        settings = Settings(sink="headless", headless=HeadlessSettings(refresh=100))
        await _start(nursery, Daemon(settings, xen.hypervisor(0)).run)
        async with Guest.booted(xen, 1, ConnectorSpec("BENCH-1", *SIZE)) as guest:
            await guest.display.connected.wait()
            for _ in range(ROUNDS + 1):
                steps = Steps()
                trio.lowlevel.add_instrument(steps)
                dbuf, framebuffer, buffer = await guest.display.create_framebuffer(*SIZE)
                await guest.display.show(0, framebuffer, *SIZE)
                await guest.display.hide(0)
                await guest.display.destroy_framebuffer(dbuf, framebuffer, buffer)
                trio.lowlevel.remove_instrument(steps)
                found.append(steps)
        nursery.cancel_scope.cancel()
    return found[1:]  # the first is for caches


def report(folder: Path) -> bool:
    """Print the figure; False when the loop is held for too long."""
    found = trio.run(measure, folder)
    longest = [one.longest for one in found]
    middle = statistics.median(longest)
    good = middle <= AT_MOST
    print(
        f"longest step of the loop [ms CPU] while a guest makes, shows and destroys a framebuffer of {SIZE[0]}x{SIZE[1]}"
    )
    print(f"{'':12} {'median':>8} {'best':>8} {'worst':>8} {'steps':>10}")
    figures = f"{middle * 1e3:8.2f} {min(longest) * 1e3:8.2f} {max(longest) * 1e3:8.2f}"
    task = max(found, key=lambda one: one.longest).task
    print(f"{'displbe':12} {figures} {sum(one.count for one in found):10}   the longest in {task}")
    over = sum(one.over for one in found)
    print(
        f"{'':12} {over} of them over {AT_MOST * 1e3:.0f} ms; the median at most that: {'good' if good else 'too long'}"
    )
    return good
