"""A hostile Linux guest beside a well-behaved one, on the real Xen: `domu/hostile.c` against displbe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from statistics import median

import pytest
from lab.backend import Backend, Held, backend, no_zombie, screens
from lab.figures import Figure
from lab.flips import flips
from lab.pictures import Picture
from lab.vkms import Vkms, vkms
from lab.vm import Machine, guest_config

CONFIG = """
sink = "drm"
[limits]
reconnects-per-second = 1000.0
"""
ROUNDS = 3
CYCLES = 168
"""The number of connections of a round, on all screens together."""
EINVAL = 22


@pytest.fixture(scope="module")
def pictures(reference: Callable[..., Picture]) -> tuple[Picture, Picture]:
    return reference(), reference(pattern="plain")


@pytest.fixture(scope="module")
def card(machine: Machine) -> Iterator[Vkms]:
    """A vkms card with two more screens."""
    with vkms(machine, connectors=2) as made:
        yield made


@pytest.fixture(scope="module")
def displbe(machine: Machine, card: Vkms, pictures: tuple[Picture, Picture]) -> Iterator[Backend]:
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


def start(machine: Machine, todo: str, *connectors: str) -> None:
    """Create a hostile guest that does `todo`, on the second screen, or with a device for each of these connectors."""
    names = connectors or (next(iter(machine.connectors("gpu1"))),)
    devices = ",".join(f"'backend=0,be-alloc=0,connectors={name}:1024x768'" for name in names)
    # privcmd: a normal kernel restricts the hypercalls of its programs; a hostile guest's kernel does not.
    extra = f"do={todo} initcall_blacklist=xen_drv_init xen_privcmd.unrestricted=1"
    machine.create("hostile", guest_config("hostile", f"vdispl=[{devices}]", extra=extra))


def hostile(machine: Machine, todo: str, timeout: float, *connectors: str) -> list[str]:
    """Run a hostile guest to its end. Return the lines that it has written."""
    start(machine, todo, *connectors)
    console = machine.wait_console("hostile", "guest: done", timeout)
    lines = re.findall(r"hostile: (.*)", console)
    print("\n" + "\n".join(lines))
    return lines


def test_beside_a_good_guest(
    machine: Machine, displbe: Backend, idle: Held, pictures: tuple[Picture, Picture], figure: Figure
) -> None:
    """A guest sends floods, impossible indices, forged names, and states as fast as XenStore accepts them: the other guest flips on."""
    first, second = (next(iter(machine.connectors(gpu))) for gpu in ("gpu0", "gpu1"))
    good = machine.create("good", guest_config("flip", screens(first)))
    machine.wait_console("good", "freq:", 60, count=5)
    quiet = flips(machine, "good")
    forgeries = f"alone:{first},backend:{good},resolution:640x480,name:{first},forge:{first},forge:{second}"
    lines = hostile(machine, f"flood:6,index:0,storm:5,flood:5,{forgeries}", 240)
    floods = [tuple(map(int, re.findall(r"\d+", line))) for line in lines if line.startswith("flood")]
    assert len(floods) == 2
    assert all(refused > 50 and state == 4 for *_, refused, state in floods), floods
    assert "index: shut off, back again" in lines
    untouched = ("0/unique-id", "0/resolution", "be-alloc")
    forged = [line for line in lines if line.startswith(("alone", "backend", "resolution", "name", "forge"))]
    assert forged[:3] == [f"alone: device/vdispl/0/{key}: not written, not removed" for key in untouched]
    assert forged[3].startswith("backend: refused: the guest's backend node is b'/local/domain/0/backend/vdispl/")
    assert forged[4:] == [
        "resolution: refused: 0/unique-id is missing",
        *(f"{what}: refused: 0/unique-id was written by the guest" for what in ("name", "forge", "forge")),
    ]
    said = " ".join(str(line["reason"]) for line in displbe.events("cannot connect"))
    for reason in ("backend node is", "0/unique-id is missing", "0/unique-id was written by the guest"):
        assert reason in said, "the log gives the operator the reason"
    stormy = flips(machine, "good")[len(quiet) :]
    assert len(stormy) > 2
    figure(
        f"the other guest: {median(quiet):.1f} flips/s before, {median(stormy):.1f} during, {min(stormy):.1f} at worst"
    )
    assert median(stormy) >= 20  # three guests' processors share the only one
    assert "timed-out" not in machine.console("good")
    assert machine.screendump(name="good-beside-hostile") in pictures
    assert not displbe.events("device failed; it is started anew")
    assert not displbe.events("a request waited without a notification")


def test_connect_and_leave(machine: Machine, displbe: Backend, card: Vkms, idle: Held, figure: Figure) -> None:
    """After 500 connections on four screens at once, memory and held resources are as before. Every fourth connection leaves a buffer and a
    framebuffer behind (a dma-buf on two of the screens).
    """
    names = [next(iter(machine.connectors(gpu))) for gpu in ("gpu0", "gpu1")] + list(card.connectors)
    memory, grown, seconds = displbe.memory(), [], 0.0
    for _ in range(ROUNDS):
        begun = machine.clock
        lines = hostile(machine, f"cycle:{CYCLES // len(names)}:{len(names)}", 60 + 3 * CYCLES, *names)
        assert lines == [f"cycle: {CYCLES} times"]
        seconds += machine.clock - begun
        machine.destroy("hostile")
        machine.wait_for(lambda: displbe.held() == idle, 30, why="everything released")
        before, memory = memory, displbe.memory()
        grown.append(memory - before)
    figure(f"{ROUNDS * CYCLES} connections in {seconds:.0f} s, with {grown} kB more resident memory; held: {idle}")
    assert grown[-1] < 512  # the first ones fill what the allocator keeps


def test_destroyed_while_connecting(machine: Machine, displbe: Backend, idle: Held) -> None:
    """A8: displbe releases everything of a guest that dies at any moment while it connects and leaves."""
    for turn in range(6):
        start(machine, "cycle:1000")
        machine.wait_console("hostile", "guest: up", 60)
        machine.sleep(1 + 0.17 * turn)
        machine.destroy("hostile")
        machine.wait_for(lambda: displbe.held() == idle, 30, why="everything released")
    assert hostile(machine, "cycle:1", 60) == ["cycle: 1 times"]
    assert not displbe.events("device failed; it is started anew")


def test_wrong_grants(machine: Machine, displbe: Backend, idle: Held) -> None:
    """B4: Xen refuses to map a transfer grant and a free grant, and the guest gets EINVAL."""
    lines = hostile(machine, "grants:0", 60)
    assert lines == [
        f"grants: transfer: {-EINVAL}",
        f"grants: transfer directory: {-EINVAL}",
        f"grants: free: {-EINVAL}",
        "grants: good: 0",
    ]


def test_paused(machine: Machine, displbe: Backend, idle: Held, pictures: tuple[Picture, Picture]) -> None:
    """D12: the screen keeps the last frame of a guest paused by `xl pause`, and displbe does no work for it. It goes on when unpaused."""
    first = next(iter(machine.connectors("gpu0")))
    machine.create("good", guest_config("flip", screens(first)))
    machine.wait_console("good", "freq:", 60, count=3)
    machine.check("xl pause good")
    machine.sleep(1)
    held, cpu, frame = displbe.held(), sum(displbe.cpu_seconds()), machine.screendump()
    machine.sleep(5)
    assert frame in pictures
    assert machine.screendump(name="paused") == frame
    assert displbe.held() == held
    idle_cost = sum(displbe.cpu_seconds()) - cpu
    print(f"\npaused for 5 s: {idle_cost:.2f} s of CPU time")
    machine.check("xl unpause good")
    before = len(flips(machine, "good"))
    machine.wait_console("good", "freq:", 60, count=before + 5)
    assert flips(machine, "good")[-1] > 0
    assert not displbe.events("device failed; it is started anew")
