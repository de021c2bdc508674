"""Stock Debian 13 on a PC: its own hypervisor, kernel and systemd, unchanged, with displbe's package, installed by apt as in README.md.

Dom0 is PV, so gntdev cannot export dma-bufs, and each frame is copied. The guests run Debian's kernel as well.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import Held, no_zombie, screens
from lab.figures import Figure
from lab.package import check_devices, debian_package
from lab.pictures import Picture
from lab.tried import EXACT, Tried
from lab.vm import LabError, Machine, Result, guest_config, reference_picture
from lab.x86 import X86

MEMORY = 256
"""MB of a guest. Debian's kernel needs more than the other lab's."""
WHY = "this kernel is built without CONFIG_XEN_GNTDEV_DMABUF"
COPIED = {
    "this is a PV domain: each frame is copied",
    "the kernel has no CONFIG_XEN_GNTDEV_DMABUF: each frame is copied, and there is no be-alloc",
    "the kernel has no CONFIG_XEN_GRANT_DMA_ALLOC: there is no be-alloc",
    "gntdev does not support dma-bufs: each frame is copied",
}
"""The check's warnings on stock Debian."""


@pytest.fixture(scope="module")
def machine(out: Path) -> Iterator[Machine]:
    """Xen, with Debian as Dom0."""
    with X86(out=out) as running:
        try:
            yield running
        finally:
            with contextlib.suppress(LabError):
                running.check("journalctl -b >/var/log/journal.log", 120)
                running.keep_logs()


@pytest.fixture(scope="module")
def smpte(machine: Machine) -> Picture:
    """modetest's picture, drawn by Dom0 before displbe takes the card."""
    return reference_picture(machine)


@pytest.fixture(scope="module")
def package(machine: Machine, smpte: Picture) -> None:
    """The package, installed as in README.md."""
    machine.put("/root/displbe.deb", debian_package("amd64"))
    machine.check("cd /root && DEBIAN_FRONTEND=noninteractive apt install -y ./displbe.deb", 120)


@pytest.fixture(scope="module")
def before(machine: Machine, package: None) -> Result:
    """The check between the installation and the first start."""
    return machine.run("displbectl check", 120)


@pytest.fixture(scope="module")
def service(machine: Machine, before: Result) -> None:
    """The service, started as in README.md. The unit and the configuration are the package's."""
    machine.check("systemctl enable --now displbe", 120)


def held(machine: Machine) -> Held:
    """Return what displbe holds now."""
    return Held.by(machine, int(machine.check("systemctl show --value -p MainPID displbe")), "displbe")


@pytest.fixture
def idle(machine: Machine, service: None) -> Iterator[Held]:
    """The resources that displbe holds without guests. After the test, without its guests, it must hold the same again."""
    without = held(machine)
    yield without
    for name in ("pv", "pvh"):
        machine.destroy(name)
    machine.wait_for(lambda: held(machine) == without, 20, why=f"everything released: {held(machine)} != {without}")
    no_zombie(machine)


def events(machine: Machine, event: str) -> list[dict[str, object]]:
    """Return the lines of displbe's journal with this event."""
    lines = machine.check("journalctl -u displbe -o cat").splitlines()
    return [line for text in lines if text.startswith("{") and (line := json.loads(text))["event"] == event]


def warnings(said: Result) -> set[str]:
    """Return the warnings of a check, which must not have found errors."""
    print(said.output)
    assert said.code == 0
    return set(re.findall(r"^warning (.*)$", said.output, re.M))


def test_devices(machine: Machine, package: None) -> None:
    """apt has installed the package's files, and by its rules udev has given Xen's devices to its group."""
    machine.check("dpkg -V displbe")
    check_devices(machine)


def test_check(machine: Machine, before: Result, service: None) -> None:
    """displbectl's warnings are that frames are copied; and, while that is so, that displbe does not run."""
    (silent,) = warnings(before) - COPIED
    assert "displbe does not run here" in silent
    assert warnings(before) > COPIED
    running = machine.run("displbectl check", 120)
    assert warnings(running) == COPIED
    for card in ("card0", "card1"):
        assert f"ok      {card}: displbe can be DRM master" in before.output
        assert f"ok      {card}: displbe is DRM master" in running.output


def told_to_be_copied(machine: Machine, name: str) -> None:
    """Assert that status and log say that the one screen on is copied, and why."""
    told = machine.check("displbectl status")
    if machine.out:
        (machine.out / f"{name}-status.txt").write_text(told)
    assert f"because: {WHY}" in told
    assert f"path copy: {WHY}" in " ".join(told.split())
    assert events(machine, "frames are copied")[-1]["reason"] == WHY
    shown = events(machine, "output on")[-1]
    assert (shown["path"], shown["reason"]) == ("copy", WHY)


def show(machine: Machine, picture: Picture, kind: str, connector: str, tried: Tried) -> str:
    """Create a guest of a kind, named after it, and assert that its picture is shown, and copied. Return how long that took."""
    created = machine.clock
    machine.create(kind, guest_config("still", screens(connector), kind=kind, memory=MEMORY))
    machine.wait_console(kind, "guest: drawing", 60)
    machine.expect_picture(picture, kind)
    took = f"the picture was there {machine.clock - created:.0f} s after xl create"
    told_to_be_copied(machine, kind)
    tried(machine, kind, connector, "DRM", "copy", EXACT)
    return took


def test_pv(machine: Machine, idle: Held, smpte: Picture, figure: Figure, tried: Tried) -> None:
    """The monitor shows the picture of a PV guest with Debian's kernel, and again after `xl reboot`. Status and log say why it is copied.

    A guest that is destroyed while it draws leaves nothing.
    """
    figure(show(machine, smpte, "pv", next(iter(machine.connectors())), tried))
    assert events(machine, "displbe starts")[-1]["reason"] == WHY
    shown = len(events(machine, "output on"))
    machine.check("xl reboot pv")
    machine.wait_console("pv", "guest: drawing", 120, count=2)
    machine.expect_picture(smpte, "pv-rebooted")
    assert len(events(machine, "output on")) == shown + 1
    assert held(machine) != idle


def test_pvh_and_attached(machine: Machine, idle: Held, smpte: Picture, figure: Figure, tried: Tried) -> None:
    """A PVH guest is shown in the same way. Beside it, `xl vdispl-attach` gives a running PV guest a screen, on the second card.

    `xl vdispl-detach` takes the one screen away, and leaves the other.
    """
    first, second = (next(iter(machine.connectors(gpu))) for gpu in ("gpu0", "gpu1"))
    figure(show(machine, smpte, "pvh", first, tried))
    alone, gone = held(machine), len(events(machine, "device gone"))
    machine.create("pv", guest_config("twice", kind="pv", memory=MEMORY))
    machine.wait_console("pv", "guest: up", 60)
    machine.check(f"xl vdispl-attach pv backend=0 be-alloc=0 connectors={second}:1024x768")
    machine.wait_console("pv", "guest: drawing", 60)
    machine.expect_picture(smpte, "attached", "gpu1")
    machine.expect_picture(smpte, "beside-attached", "gpu0")
    machine.check("xl vdispl-detach pv 0")
    assert len(events(machine, "device gone")) == gone + 1
    assert held(machine) == alone
    machine.expect_picture(smpte, "after-detached", "gpu0")
