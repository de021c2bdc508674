"""Figures of an emulated machine depend on what else its host does: they are taken again when they are not good, and each is printed
with how long the emulator stood waiting for a processor meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.vm import Machine

__all__ = ["taken"]

T = TypeVar("T")

QUIET = 0.15
"""The part of its time that the emulator waits when nothing else runs, at most: its own threads are more than two."""
PATIENCE = 120.0
"""Seconds that a quiet moment is waited for before a figure is taken again."""


@dataclass(frozen=True)
class Spent:
    """Seconds of the emulator's threads: on a processor, and waiting for one; seconds that the host's host took."""

    ran: float
    waited: float
    stolen: float

    @classmethod
    def by(cls, machine: Machine) -> Spent:
        """Since it began: proc(5), /proc/PID/task/TID/schedstat and /proc/stat."""
        ran = waited = 0
        for task in Path(f"/proc/{machine.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                times = (task / "schedstat").read_text().split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
        stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
        return cls(ran / 1e9, waited / 1e9, stolen / os.sysconf("SC_CLK_TCK"))

    def since(self, before: Spent) -> Spent:
        """What has come since then."""
        return Spent(self.ran - before.ran, self.waited - before.waited, self.stolen - before.stolen)

    @property
    def share(self) -> float:
        """Which part of the time in which it wanted a processor it waited for one."""
        return self.waited / max(self.ran + self.waited, 0.001)


@contextlib.contextmanager
def watched(machine: Machine) -> Iterator[None]:
    """Print what the emulator had of its host in this time."""
    before = Spent.by(machine)
    yield
    spent = Spent.by(machine).since(before)
    print(f"the emulator waited {spent.share:.0%} of its time for a processor; {spent.stolen:.1f} s were stolen")


def taken(machine: Machine, figure: Callable[[], T], good: Callable[[T], bool], tries: int = 3) -> T:
    """A figure: the first one that is good, of so many tries; else the last."""
    for left in reversed(range(tries)):
        with watched(machine):
            found = figure()
        if good(found) or not left:
            return found
        print("not good: once more when the host is quiet")
        _wait(machine)
    raise ValueError("no try at all")


def _wait(machine: Machine) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        before = Spent.by(machine)
        time.sleep(3)
        if Spent.by(machine).since(before).share < QUIET:
            return
