"""Figures of an emulated machine depend on what else its host does: they are taken again when they are not good, and each is printed
with how long the emulator stood waiting for a processor meanwhile, and how long its host did.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lab.vm import Machine

__all__ = ["taken"]

T = TypeVar("T")

QUIET = 0.15
"""The part of its time that the emulator waits when nothing else runs, at most: its own threads are more than two."""
DISTURBED = 0.015
"""The part of a try's time that may be stolen from this host, of both its processors' together."""
STOLEN = 0.03
"""The part of a second of work that the host's host may take in a quiet moment."""
PATIENCE = 120.0
"""Seconds that a quiet moment is waited for before a figure is taken again."""
ALTOGETHER = 360.0
"""Seconds that one run of the tests waits for quiet moments; then there are none to be had."""
_waits: list[float] = []


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


def taken(machine: Machine, figure: Callable[[], T], good: Callable[[T], bool], tries: int = 3) -> T:
    """A figure: the first one that is good, of so many tries. Raises AssertionError when none is.

    Where the host's own host took its processors away in each of them, there is no figure: that is printed, and nothing is judged.
    """
    disturbed = True
    for left in reversed(range(tries)):
        before, began = Spent.by(machine), time.monotonic()
        found = figure()
        spent, seconds = Spent.by(machine).since(before), time.monotonic() - began
        print(f"the emulator waited {spent.share:.0%} of its time for a processor; {spent.stolen:.1f} s were stolen")
        if good(found):
            return found
        disturbed &= spent.stolen > DISTURBED * seconds
        if left:
            print("not good: once more when the host is quiet")
            _wait(machine)
    assert disturbed, f"not good: {found}"
    print("NOT JUDGED: the host had not the processors that it seems to have")
    return found


def _wait(machine: Machine) -> None:
    start = time.monotonic()
    until = start + min(PATIENCE, ALTOGETHER - sum(_waits))
    while time.monotonic() < until:
        before, began = Spent.by(machine), time.monotonic()
        time.sleep(3)
        while time.monotonic() < began + 4:  # nothing is stolen from who does nothing
            pass
        now = Spent.by(machine).since(before)
        if now.share < QUIET and now.stolen < STOLEN:
            break
    _waits.append(time.monotonic() - start)
