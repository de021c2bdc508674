"""Figures: measurements in the emulated machine. They depend on the other work of its host.

`make lab` takes each figure once, and prints whether it is good. `make figures` enforces the figures, on a host that does nothing else: a
figure that is not good is taken again when the host is quiet, and fails the test if it is never good.

Each figure is printed with the time that the emulator waited for a processor meanwhile, and with the host's steal time.
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
"""Maximum share of its time that the emulator waits for a processor on a quiet host. It has more than two threads, so it always waits."""
STOLEN = 0.03
"""Maximum seconds of steal time (time that the host's own hypervisor takes) in a quiet moment."""
PATIENCE = 120.0
"""Maximum seconds to wait for a quiet moment before a figure is taken again."""


@dataclass(frozen=True)
class Spent:
    """Seconds that the emulator's threads ran on a processor and waited for one, and the host's steal time in seconds."""

    ran: float
    waited: float
    stolen: float

    @classmethod
    def by(cls, machine: Machine) -> Spent:
        """Return the seconds since the start (proc(5): /proc/PID/task/TID/schedstat and /proc/stat)."""
        ran = waited = 0
        for task in Path(f"/proc/{machine.pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                times = (task / "schedstat").read_text().split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
        stolen = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
        return cls(ran / 1e9, waited / 1e9, stolen / os.sysconf("SC_CLK_TCK"))

    def since(self, before: Spent) -> Spent:
        """Return the difference from an earlier value."""
        return Spent(self.ran - before.ran, self.waited - before.waited, self.stolen - before.stolen)

    @property
    def share(self) -> float:
        """The share of the time that the emulator waited for a processor, of the time in which it ran or waited."""
        return self.waited / max(self.ran + self.waited, 0.001)

    def __str__(self) -> str:
        return f"the emulator waited {self.share:.0%} of its time for a processor; {self.stolen:.1f} s were stolen"


@dataclass
class Figures:
    """The figures of one test."""

    name: str
    """The test's name."""
    enforced: bool
    """Whether a figure that is not good fails the test."""
    lines: list[str]
    """One line for each figure of the whole run."""

    def note(self, wanted: str, found: object, met: bool) -> None:
        """Report a figure that was measured once. Raises AssertionError if figures are enforced and it is not met."""
        self._report(wanted, str(found), met)
        assert met or not self.enforced, self.lines[-1]

    def take(
        self, machine: Machine, wanted: str, measure: Callable[[], T], good: Callable[[T], bool], tries: int = 3
    ) -> T:
        """Take a figure and return it: once, or, if figures are enforced, up to `tries` times until it is good.

        Raises AssertionError if figures are enforced and none is good.
        """
        for left in reversed(range(tries if self.enforced else 1)):
            before = Spent.by(machine)
            found = measure()
            spent = Spent.by(machine).since(before)
            met = good(found)
            self._report(wanted, f"{found} ({spent})", met)
            if met:
                return found
            if left:
                _wait(machine)
        assert not self.enforced, self.lines[-1]
        return found

    def _report(self, wanted: str, found: str, met: bool) -> None:
        self.lines.append(f"{'met' if met else 'NOT MET':8}{self.name}: {wanted}: {found}")
        print(f"\n{self.lines[-1]}")


def _wait(machine: Machine) -> None:
    """Wait until the host is quiet, at most PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        before, began = Spent.by(machine), time.monotonic()
        time.sleep(3)
        while time.monotonic() < began + 4:  # compute: an idle process loses no steal time
            pass
        now = Spent.by(machine).since(before)
        if now.share < QUIET and now.stolen < STOLEN:
            return
