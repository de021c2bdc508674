"""displbe in the lab's Dom0: started from this tree with Debian's Python, watched, ended; and what it holds, counted."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from lab.vm import LabError, Machine

__all__ = ["LOG", "Backend", "Held", "backend", "no_zombie", "screens"]

TREE = "/root/displbe-tree"
LOG = "/var/log/displbe.log"


@dataclass(frozen=True)
class Held:
    """What displbe holds of guests, as the kernel and the hypervisor count it."""

    fds: int
    grant_mappings: int
    event_channels: int
    dmabufs: int

    @classmethod
    def by(cls, machine: Machine, pid: int) -> Held:
        """Count for a process."""
        counted = machine.check(
            f"ls /proc/{pid}/fd | wc -l; grep -c xen/gntdev /proc/{pid}/maps;"
            " grep -c evtchn:python3 /proc/interrupts; grep -c xen_gntdev /sys/kernel/debug/dma_buf/bufinfo; true"
        )
        return cls(*map(int, counted.split()))


class Backend:
    """A running displbe."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        return int(self.machine.check("cat /run/displbe.pid"))

    def kill(self) -> datetime:
        """`kill -9`; the time by Dom0's clock, in UTC like the log's."""
        seconds = float(self.machine.check(f"kill -KILL {self.pid}; date +%s.%N"))
        return datetime.fromtimestamp(seconds, UTC)

    def log(self) -> list[dict[str, object]]:
        """Its log's lines."""
        text = self.machine.run(f"cat {LOG}").output
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, object]]:
        """The log's lines of one kind."""
        return [line for line in self.log() if line.get("event") == event]

    def held(self) -> Held:
        """What it holds now."""
        return Held.by(self.machine, self.pid)

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time it has used so far: user, system."""
        fields = self.machine.check(f"cat /proc/{self.pid}/stat").rpartition(")")[2].split()
        return int(fields[11]) / 100, int(fields[12]) / 100

    def memory(self) -> int:
        """Resident memory, kB."""
        return int(re.findall(r"VmRSS:\s+(\d+)", self.machine.check(f"cat /proc/{self.pid}/status"))[0])


@contextlib.contextmanager
def backend(machine: Machine, config: str, prefix: str = "") -> Iterator[Backend]:
    """displbe with a configuration, from its readiness until SIGTERM has ended it with exit code 0.

    Killed meanwhile, it is started again as systemd does: after 200 ms, the log going on. `prefix`: a command that becomes
    displbe, as `setpriv`.
    """
    machine.put("/etc/displbe/displbe.toml", config)
    machine.run(f"rm -f {LOG} /run/displbe.exit")
    command = f"{{ cd {TREE}; exec {prefix} python3 -m displbe --config /etc/displbe/displbe.toml; }}"
    once = f"{command} & echo $! >/run/displbe.pid; wait $!; code=$?"
    again = f"while [ $code = 137 ]; do sleep 0.2; {once}; done"
    group = machine.start(f"{once}; {again}; echo $code >/run/displbe.exit", LOG)
    running = Backend(machine)

    def ready() -> bool:
        if machine.run("test -e /run/displbe.exit").code == 0:
            raise LabError(f"displbe did not start:\n{machine.run(f'cat {LOG}').output}")
        return '"event": "ready"' in machine.run(f"cat {LOG}").output

    try:
        machine.wait_for(ready, 60, why="displbe's readiness")
        yield running
    finally:
        machine.run("kill -TERM $(cat /run/displbe.pid)")
        try:
            machine.wait_for("test -e /run/displbe.exit", 20, why="displbe's end after SIGTERM")
        finally:
            machine.run(f"kill -KILL -- -{group}")
    ended = machine.check("cat /run/displbe.exit").strip()
    if ended != "0":
        raise LabError(f"displbe ended with {ended}:\n{machine.run(f'tail -c 5000 {LOG}').output}")


def no_zombie(machine: Machine) -> None:
    """Every dead guest is gone: one whose pages somebody still maps stays, under the name (null)."""
    machine.wait_for(lambda: "(null)" not in machine.check("xl list"), 30, why="the end of a dead guest")


def screens(connector: str, mode: str = "1024x768", be_alloc: int = 0) -> str:
    """The line of an xl configuration that gives a guest a screen."""
    return f"vdispl=['backend=0,be-alloc={be_alloc},connectors={connector}:{mode}']"
