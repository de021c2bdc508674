"""Linux guests with an unmodified drm_xen_front; displbe in Dom0 is DRM master and shows their pictures on the emulated monitor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from statistics import median

import pytest
from lab.backend import Backend, Held, backend, no_zombie, screens
from lab.figures import Figure
from lab.flips import flips
from lab.pictures import Picture
from lab.tried import EXACT, Tried
from lab.vm import Machine, guest_config

ALLOWED = "".join(f"[guest.{name}]\nbe-alloc = true\n" for name in ("still", "flip", "again"))
PATHS = {
    "copy": ('zero-copy = "off"\n', 0),
    "zero copy": ('zero-copy = "require"\n', 0),
    "be-alloc": (f'zero-copy = "require"\n{ALLOWED}', 1),
}
"""Path of the pixels to the screen -> [drm] of the configuration, and be-alloc of the guest."""
TIMES = {"copy": 3, "zero copy": 10, "be-alloc": 3}
"""Path -> the number of times that a guest is rebooted, and destroyed."""
SECONDS = 12
"""Seconds that a guest flips."""


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.replace(",", "").replace(" ", "-"))
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def screen(machine: Machine, path: str) -> str:
    """The guest's vdispl line."""
    return screens(next(iter(machine.connectors())), be_alloc=PATHS[path][1])


@pytest.fixture(scope="module")
def pictures(reference: Callable[..., Picture]) -> tuple[Picture, Picture]:
    """The two pictures that modetest flips between, drawn before displbe takes the card."""
    return reference(), reference(pattern="plain")


@pytest.fixture(scope="module")
def displbe(machine: Machine, pictures: tuple[Picture, Picture], path: str) -> Iterator[Backend]:
    with backend(machine, f'sink = "drm"\n[log]\nlevel = "debug"\n[drm]\n{PATHS[path][0]}') as running:
        yield running


@pytest.fixture
def idle(machine: Machine, displbe: Backend) -> Iterator[Held]:
    """The resources that displbe holds without guests. After the test it must hold the same again."""
    before = displbe.held()
    yield before
    for name in ("still", "flip", "again"):
        machine.destroy(name)
    machine.wait_for(lambda: displbe.held() == before, 20, why=f"everything released: {displbe.held()} != {before}")
    no_zombie(machine)


def test_picture(
    machine: Machine, displbe: Backend, idle: Held, path: str, pictures: tuple[Picture, Picture], tried: Tried
) -> None:
    """The monitor shows the same picture for a guest's modetest as for Dom0's own."""
    machine.create("still", guest_config("still", screen(machine, path)))
    machine.wait_console("still", "guest: drawing", 60)
    machine.wait_for(lambda: displbe.events("output on"), 30, why="the screen")  # another run's picture may be on it
    machine.expect_picture(pictures[0], f"guest-still-{path.replace(' ', '-')}")
    assert displbe.events("output on")[-1]["path"] == path
    tried(machine, "still", next(iter(machine.connectors())), "DRM", path, EXACT)
    if path == "zero copy":
        attached = machine.check("cat /sys/kernel/debug/dma_buf/bufinfo")
        (machine.out / "bufinfo.txt").write_text(attached) if machine.out else None
        gntdev = re.findall(r"^\S+\s+\S+\s+\S+\s+\S+\s+xen_gntdev.*?(?=\n\n|\Z)", attached, re.M | re.S)
        assert gntdev, attached
        assert all("virtio" in buffer for buffer in gntdev), attached


def test_flips(
    machine: Machine, displbe: Backend, idle: Held, path: str, pictures: tuple[Picture, Picture], figure: Figure
) -> None:
    """modetest flips as often as the screen is refreshed, 60 times a second, and the screen shows one of the two pictures."""
    machine.create("flip", guest_config("flip", screen(machine, path), seconds=SECONDS))
    machine.wait_console("flip", "freq:", 60)
    cpu, began = displbe.cpu_seconds(), displbe.machine.clock
    shown = machine.screendump(name=f"guest-flip-{path.replace(' ', '-')}")
    assert shown in pictures
    console = machine.wait_console("flip", "guest: done", SECONDS + 30)
    used = [after - before for after, before in zip(displbe.cpu_seconds(), cpu, strict=True)]
    rates = flips(machine, "flip")
    per_flip = [1000 * seconds / (60 * max(1, len(rates) - 1)) for seconds in used]
    rate = median(rates)
    figure(
        f"{path}: {rate:.1f} flips/s, CPU per flip {per_flip[0]:.2f} + {per_flip[1]:.2f} ms"
        f" (user + system), {displbe.memory() // 1024} MB resident, {displbe.machine.clock - began:.0f} s"
    )
    assert "timed-out" not in console
    assert rate > 59


def test_reboots(machine: Machine, displbe: Backend, idle: Held, path: str) -> None:
    """A guest that reboots is served each time. Its shutdown does not wait: it sees displbe's state 5 at once."""
    before = len(displbe.events("output on"))
    # A frontend that has waited for 5 s logs that with KERN_INFO (xenbus_dev_shutdown).
    machine.create("again", guest_config("reboot", screen(machine, path), seconds=2, extra="loglevel=7"))
    machine.wait_for(lambda: len(displbe.events("output on")) - before > TIMES[path], 240, why="the reboots")
    # Without the pause, the guest may be destroyed during a reboot; xl then leaves a part of it in XenStore.
    machine.check("xl pause again")
    console = machine.console("again")
    assert "Linux version" in console, "the console has the kernel's messages"
    assert "timeout closing device" not in console


def test_destroyed_in_mid_flip(machine: Machine, displbe: Backend, idle: Held, path: str) -> None:
    """A guest is destroyed while it flips, several times. Each time, nothing of it is left."""
    for _ in range(TIMES[path]):
        machine.create("flip", guest_config("flip", screen(machine, path)))
        machine.wait_console("flip", "freq:", 60)
        assert displbe.held() != idle
        machine.destroy("flip")
        machine.wait_for(lambda: displbe.held() == idle, 20, why="everything released")
    no_zombie(machine)
