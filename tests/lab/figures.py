"""Figures: what an emulated machine measures depends on what else its host does. `make lab` takes each one once, and says whether it is
what is wanted. `make figures` holds them, on a machine that does nothing else: what is not good is taken again when the host is quiet.

What is taken is printed with how long the emulator stood waiting for a processor meanwhile, and how long its host did.
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

__all__ = ["Figures"]

T = TypeVar("T")

QUIET = 0.15
"""The part of its time that the emulator waits when nothing else runs, at most: its own threads are more than two."""
STOLEN = 0.03
"""The part of a second of work that the host's host may take in a quiet moment."""
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

    def __str__(self) -> str:
        return f"the emulator waited {self.share:.0%} of its time for a processor; {self.stolen:.1f} s were stolen"


@dataclass
class Figures:
    """Those of one test."""

    name: str
    held: bool
    """Whether one that is not good is a failure."""
    lines: list[str]
    """What came of each of the whole run."""

    def note(self, wanted: str, found: object, met: bool) -> None:
        """One that was measured once. Raises AssertionError where figures are held and it is not met."""
        self._say(wanted, str(found), met)
        assert met or not self.held, self.lines[-1]

    def take(
        self, machine: Machine, wanted: str, measure: Callable[[], T], good: Callable[[T], bool], tries: int = 3
    ) -> T:
        """Measure; so many times at most, where figures are held. Raises AssertionError when they are and none is good."""
        for left in reversed(range(tries if self.held else 1)):
            before = Spent.by(machine)
            found = measure()
            spent = Spent.by(machine).since(before)
            met = good(found)
            self._say(wanted, f"{found} ({spent})", met)
            if met:
                return found
            if left:
                _wait(machine)
        assert not self.held, self.lines[-1]
        return found

    def _say(self, wanted: str, found: str, met: bool) -> None:
        self.lines.append(f"{'met' if met else 'NOT MET':8}{self.name}: {wanted}: {found}")
        print(f"\n{self.lines[-1]}")


def _wait(machine: Machine) -> None:
    """Until the host is quiet."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        before, began = Spent.by(machine), time.monotonic()
        time.sleep(3)
        while time.monotonic() < began + 4:  # nothing is stolen from who does nothing
            pass
        now = Spent.by(machine).since(before)
        if now.share < QUIET and now.stolen < STOLEN:
            return
