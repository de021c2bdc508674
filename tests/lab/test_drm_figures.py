"""The DRM sink's figures, printed and held: flips per second, frames lost, CPU per flip, the time of a copy."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from lab.backend import Backend, backend, screens
from lab.test_drm import config
from lab.vm import Machine, guest_config

ALLOWED = "[guest.one]\nbe-alloc = true\n"
PATHS = {
    "copy": ('zero-copy = "off"\n', 0),
    "zero copy": ('zero-copy = "require"\n', 0),
    "be-alloc": (f'zero-copy = "require"\n{ALLOWED}', 1),
}
MEMMOVE = """
import ctypes, mmap, time
size, pairs = 1024 * 768 * 4, 4
maps = [mmap.mmap(-1, size) for _ in range(2 * pairs)]
for m in maps:
    m.write(bytes(size))
at = [ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in maps]
times = []
for turn in range(120):
    began = time.perf_counter()
    ctypes.memmove(at[2 * (turn % pairs)], at[2 * (turn % pairs) + 1], size)
    times.append(time.perf_counter() - began)
    time.sleep(0.016)
print(1000 * sum(times) / len(times))
"""

LINES = 18
"""modetest writes a line for 60 flips."""


@pytest.fixture(autouse=True)
def _guest(machine: Machine) -> Iterator[None]:
    yield
    machine.destroy("one")


class Cost(NamedTuple):
    """What a guest's flips cost displbe: flips per second, and milliseconds of CPU per flip."""

    rate: float
    user: float
    system: float


def flipping(machine: Machine, displbe: Backend, mode: str, be_alloc: int = 0) -> Cost:
    """A guest that flips more than a thousand times."""
    connector = next(iter(machine.connectors()))
    machine.create("one", guest_config("flip", screens(connector, mode, be_alloc), mode=mode))
    machine.wait_console("one", "freq:", 60, count=2)
    before, began = displbe.cpu_seconds(), time.monotonic()
    seen = len(re.findall("freq", machine.console("one")))
    machine.wait_console("one", "freq:", 120, count=seen + LINES)
    after, elapsed = displbe.cpu_seconds(), time.monotonic() - began
    rates = [float(rate) for rate in re.findall(r"freq: ([\d.]+)Hz", machine.console("one"))][seen:]
    rate = sorted(rates)[len(rates) // 2]
    user, system = (1000 * (late - early) / (rate * elapsed) for early, late in zip(before, after, strict=True))
    return Cost(rate, user, system)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.replace(" ", "-"))
def test_flips(machine: Machine, path: str) -> None:
    """At 1024x768 at least 55 flips a second, and of more than a thousand none is lost."""
    keys, be_alloc = PATHS[path]
    with backend(machine, config(keys)) as displbe:
        cost = flipping(machine, displbe, "1024x768", be_alloc)
        if path == "copy":
            machine.put("/tmp/memmove.py", MEMMOVE)
            bare = float(machine.check("python3 /tmp/memmove.py"))
        machine.destroy("one")
        machine.wait_for(lambda: displbe.events("output off"), 20, why="the guest's end")
        off = displbe.events("output off")[-1]
        assert displbe.events("output on")[-1]["path"] == path
        print(f"\n{path}: {cost.rate:.1f} flips/s, CPU {cost.user:.2f} + {cost.system:.2f} ms per flip (user + system)")
        print(f"of {off['flips']} flips {off['shown']} shown, {off['late']} late")
        assert displbe.events("output dark") == []
        if path == "copy":
            took = float(str(displbe.events("copied")[-1]["milliseconds"]))
            print(f"copy of a frame: {took:.2f} ms, bare memmove: {bare:.2f} ms, {took / bare:.2f} times")
            assert took <= 1.3 * bare
    assert int(str(off["flips"])) >= 1000
    assert int(str(off["flips"])) - int(str(off["shown"])) <= 1  # the one under way
    assert off["late"] == 0
    assert cost.rate >= 55


def test_zero_copy_touches_no_pixels(machine: Machine) -> None:
    """CPU per flip does not grow with the picture: the user part, in which pixels would be touched.

    The system part does in this lab: while a processor is emulated, the emulator's own copy of the screen counts as the time
    of whoever gave the card the command.
    """
    with backend(machine, config('zero-copy = "require"')) as displbe:
        cost = {}
        for mode in ("640x480", "1920x1080"):
            cost[mode] = flipping(machine, displbe, mode)
            now = cost[mode]
            print(
                f"\n{mode}: {now.rate:.1f} flips/s, CPU {now.user:.2f} + {now.system:.2f} ms per flip (user + system)"
            )
            machine.destroy("one")
    assert cost["1920x1080"].user <= 1.1 * cost["640x480"].user
