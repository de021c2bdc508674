"""A hostile Linux guest beside a well-behaved one, on the real Xen: `domu/hostile.c` against displbe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import pytest
from lab.backend import Backend, Held, backend, no_zombie, screens
from lab.pictures import Picture
from lab.vm import Machine, guest_config

CONFIG = """
sink = "drm"
[limits]
reconnects-per-second = 1000.0
"""
CYCLES = int(os.environ.get("DISPLBE_CYCLES", "60"))
"""Connections in a row; `make soak` makes 500 of them."""


@pytest.fixture(scope="module")
def pictures(reference: Callable[..., Picture]) -> tuple[Picture, Picture]:
    return reference(), reference(pattern="plain")


@pytest.fixture(scope="module")
def displbe(machine: Machine, pictures: tuple[Picture, Picture]) -> Iterator[Backend]:
    with backend(machine, CONFIG) as running:
        yield running


@pytest.fixture
def idle(machine: Machine, displbe: Backend) -> Iterator[Held]:
    before = displbe.held()
    yield before
    for name in ("good", "hostile"):
        machine.destroy(name)
    machine.wait_for(lambda: displbe.held() == before, 30, why=f"everything released: {displbe.held()} != {before}")
    no_zombie(machine)


def hostile(machine: Machine, todo: str, timeout: float) -> list[str]:
    """A guest on the second screen that does these things: its lines."""
    connector = next(iter(machine.connectors("gpu1")))
    machine.create(
        "hostile", guest_config("hostile", screens(connector), extra=f"do={todo} initcall_blacklist=xen_drv_init")
    )
    console = machine.wait_console("hostile", "guest: done", timeout)
    lines = re.findall(r"hostile: (.*)", console)
    print("\n" + "\n".join(lines))
    return lines


def rates(machine: Machine) -> list[float]:
    """The flips per second that the good guest's modetest has counted so far."""
    return [float(rate) for rate in re.findall(r"freq: ([\d.]+)Hz", machine.console("good"))]


def middle(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]


def test_beside_a_good_guest(machine: Machine, displbe: Backend, idle: Held, pictures: tuple[Picture, Picture]) -> None:
    """Floods, impossible indices, forged names, states at the limit of XenStore: the other guest's flips go on."""
    first, second = (next(iter(machine.connectors(gpu))) for gpu in ("gpu0", "gpu1"))
    machine.create("good", guest_config("flip", screens(first)))
    machine.wait_console("good", "freq:", 60, count=5)
    quiet = rates(machine)
    lines = hostile(machine, f"flood:15,index:0,storm:5,flood:5,forge:{first},forge:{second}", 180)
    floods = [tuple(map(int, re.findall(r"\d+", line))) for line in lines if line.startswith("flood")]
    assert len(floods) == 2
    assert all(refused > 200 and state == 4 for *_, refused, state in floods), floods
    assert "index: shut off, back again" in lines
    forged = [line for line in lines if line.startswith("forge")]
    assert len(forged) == 2
    assert all("refused: 0/unique-id was written by the guest" in line for line in forged)
    stormy = rates(machine)[len(quiet) :]
    print(
        f"the other guest: {middle(quiet):.1f} flips/s before, {middle(stormy):.1f} during, {min(stormy):.1f} at worst"
    )
    assert len(stormy) > 20
    assert (
        middle(stormy) >= 20
    )  # three guests' processors on the emulator's two; its neighbour's answers are in tests/bench
    assert "timed-out" not in machine.console("good")
    assert machine.screendump(name="good-beside-hostile") in pictures
    assert not displbe.events("device failed; it is started anew")
    assert not displbe.events("a request waited without a notification")


def test_connect_and_leave(machine: Machine, displbe: Backend, idle: Held) -> None:
    """Many connections one after the other: the memory and all that is held are back where they were."""
    hostile(machine, "cycle:20", 120)
    machine.destroy("hostile")
    machine.wait_for(lambda: displbe.held() == idle, 30, why="everything released")
    memory = displbe.memory()
    lines = hostile(machine, f"cycle:{CYCLES}", 60 + 3 * CYCLES)
    assert lines == [f"cycle: {CYCLES} times"]
    machine.destroy("hostile")
    machine.wait_for(lambda: displbe.held() == idle, 30, why="everything released")
    grown = displbe.memory() - memory
    print(f"{CYCLES} connections: {grown} kB more resident memory")
    assert grown < 1024
