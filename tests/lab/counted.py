"""Measures flips in a machine that counts instructions: CPU time per flip of a backend, and what a guest sees of it.

The guest runs domu/flips.c, a frontend of its own. The backend is displbe, or the bare C backend (tests/bench/bare.c), which is the
yardstick: it makes only the system calls that a flip needs.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.vm import Machine, guest_config

__all__ = ["Window", "bare", "bare_pid", "flipping_guest", "flipping_guests", "install", "window"]

HERE = Path(__file__).resolve().parent
BARE = HERE.parent / "bench" / "bare.c"
# Not static: memcpy must be that of Dom0's C library, which displbe uses, too.
COMPILE = ("aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")
NO_DRIVER = "initcall_blacklist=xen_drv_init xen_gntalloc.limit=65536"
"""Keeps the guest's own driver away, and allows its program to grant whole frames."""


@dataclass(frozen=True)
class Window:
    """What was measured over a number of consecutive flips."""

    flips: int
    cpu: float
    """Milliseconds of the backend's CPU time per flip: user and system time of all its threads."""
    waits: float
    """The number of times per flip that one of the backend's threads waited."""
    rate: float
    """Flips per second of each screen."""
    response: tuple[float, float, float]
    """Microseconds from the guest's notification to the response: median, 99th percentile, maximum."""
    late: tuple[float, float, float]
    """Microseconds that a flip's event came later in its refresh period than the earliest of the window; a flip that missed its refresh
    is a whole period later. Median, 99th percentile, maximum."""

    def __str__(self) -> str:
        response, late = ("/".join(f"{value:.0f}" for value in values) for values in (self.response, self.late))
        return (
            f"CPU {self.cpu:.3f} ms per flip, {self.waits:.1f} waits, {self.rate:.1f} flips/s;"
            f" response {response} us, late {late} us (p50/p99/max)"
        )


def install(machine: Machine) -> None:
    """Put the measuring programs into Dom0."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "bare"
        subprocess.run([*COMPILE, "-o", program, BARE], check=True)
        machine.put("/root/bare", program.read_bytes())
    machine.check("chmod 755 /root/bare")
    for script in ("bare_backend.py", "flip_window.py"):
        machine.put(f"/root/{script}", (HERE / script).read_text())
    machine.check("sync; echo 0 >/proc/sys/vm/dirty_writeback_centisecs")  # writing to the disk would make flips late


def screens_of(devices: Sequence[Sequence[str]], mode: str) -> str:
    """Return the line of an xl configuration with these devices; each is a list of connectors."""
    entries = (";".join(f"{name}:{mode}" for name in names) for names in devices)
    return "vdispl=[" + ",".join(f"'backend=0,be-alloc=0,connectors={entry}'" for entry in entries) + "]"


def flipping_guest(machine: Machine, name: str, devices: Sequence[Sequence[str]], mode: str = "1024x768") -> int:
    """Create a guest that flips on all connectors of its devices as fast as the screens allow. Return its domid."""
    return flipping_guests(machine, {name: devices}, mode)[0]


def flipping_guests(
    machine: Machine, guests: Mapping[str, Sequence[Sequence[str]]], mode: str = "1024x768"
) -> list[int]:
    """Create guests, each with its devices, and wait until all of them flip. Return their domids."""
    for name, devices in guests.items():
        todo = f"do={mode}:{len(devices)}:{len(devices[0])}"
        machine.create(name, guest_config("flips", screens_of(devices, mode), extra=f"{todo} {NO_DRIVER}"))
    for name in guests:
        machine.wait_console(name, "flips: flipping", 60)
    return [int(machine.check(f"xl domid {name}")) for name in guests]


def window(machine: Machine, domid: int, pid: int, name: str, flips: int, gpu: str = "gpu0") -> Window:
    """Measure this number of flips on each screen of a guest. They are on one card and served by `pid`."""
    card = machine.card(gpu).name.removeprefix("card")
    said = json.loads(machine.check(f"python3 /root/flip_window.py {domid} {pid} {name} {flips} {card}", 300))
    count = flips * said["screens"]
    return Window(
        count,
        said["cpu_ms"] / count,
        said["waits"] / count,
        1000 * said["intervals"] / said["ms"],
        tuple(said["response"]),
        tuple(said["late"]),
    )


@contextlib.contextmanager
def bare(machine: Machine, card: str, path: str, devices: int = 1) -> Iterator[None]:
    """Run the bare backend while the block lasts. It ends before its guest does.

    It connects when so many devices of guests are there. `path`: zero-copy or copy.
    """
    log = "/var/log/bare.log"
    machine.run(f"rm -f {log} /run/bare.pid")
    group = machine.start(f"python3 /root/bare_backend.py /root/bare {card} {path} {devices}", log)
    try:
        yield
    finally:
        machine.run("kill -KILL $(cat /run/bare.pid)")
        try:
            machine.wait_for(lambda: not machine.running(group), 20, why="the end of the bare backend")
        finally:
            machine.run(f"kill -KILL -- -{group}")


def bare_pid(machine: Machine) -> int:
    """Return the bare backend's process id. It has one when the guest is connected."""
    return int(machine.check("cat /run/bare.pid"))
