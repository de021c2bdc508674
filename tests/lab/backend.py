"""displbe in the lab's Dom0: runs it from this tree with Debian's Python, reads its log, and counts the resources that it holds."""

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
    """The guests' resources that displbe holds, as the kernel and the hypervisor count them."""

    fds: int
    grant_mappings: int
    event_channels: int
    dmabufs: int

    @classmethod
    def by(cls, machine: Machine, pid: int, program: str = "python3") -> Held:
        """Count the resources that a process holds. The kernel names event channels after the program."""
        return cls(*machine.held(pid, program))


class Backend:
    """A running displbe."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def pid(self) -> int:
        """The process id of the displbe that runs now."""
        return int(self.machine.get("/run/displbe.pid"))

    def kill(self) -> datetime:
        """Kill displbe by `kill -9`. Return the time by Dom0's clock, in UTC like the times in the log."""
        seconds = float(self.machine.check(f"kill -KILL {self.pid}; date +%s.%N"))
        return datetime.fromtimestamp(seconds, UTC)

    def log(self) -> list[dict[str, object]]:
        """Return all lines of its log."""
        text = self.machine.get(LOG).decode(errors="replace")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, object]]:
        """Return the lines of its log with this event."""
        return [line for line in self.log() if line.get("event") == event]

    def held(self) -> Held:
        """Return the resources that it holds now."""
        return Held.by(self.machine, self.pid)

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the CPU time that it has used so far, in seconds: user, system."""
        fields = self.machine.check(f"cat /proc/{self.pid}/stat").rpartition(")")[2].split()
        return int(fields[11]) / 100, int(fields[12]) / 100

    def memory(self) -> int:
        """Return its resident memory in kB."""
        return int(re.findall(r"VmRSS:\s+(\d+)", self.machine.check(f"cat /proc/{self.pid}/status"))[0])


@contextlib.contextmanager
def backend(machine: Machine, config: str, prefix: str = "") -> Iterator[Backend]:
    """Run displbe with a configuration while the block lasts. The block begins when displbe is ready.

    At the end, SIGTERM must end displbe with exit code 0. If displbe is killed during the block, it is started again after
    200 ms, as systemd does it, with the same log. `prefix` is a command that executes displbe, such as `setpriv`.
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
        return b'"event": "ready"' in machine.get(LOG)

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
    """Wait until all dead guests are gone. A dead guest whose pages are still mapped stays in the list as (null)."""
    machine.wait_for(lambda: "(null)" not in machine.check("xl list"), 30, why="the end of a dead guest")


def screens(connector: str, mode: str = "1024x768", be_alloc: int = 0) -> str:
    """Return the line of an xl configuration that gives a guest a screen."""
    return f"vdispl=['backend=0,be-alloc={be_alloc},connectors={connector}:{mode}']"
