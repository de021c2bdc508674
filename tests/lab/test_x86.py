"""Stock Debian 13 on a PC: its own hypervisor, kernel and systemd, unchanged, with displbe's package, installed by apt as in README.md.

Dom0 is PV, so gntdev cannot export dma-bufs, and each frame is copied. The guests run Debian's kernel as well.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import Held, no_zombie, screens
from lab.figures import Figure
from lab.package import debian_package
from lab.pictures import Picture
from lab.vm import LabError, Machine, guest_config, reference_picture
from lab.x86 import X86

KINDS = ("pv", "pvh")
MEMORY = 256
"""MB of a guest. Debian's kernel needs more than the other lab's."""
CONFIG = "/etc/displbe/displbe.toml"


@pytest.fixture(scope="module")
def machine(out: Path) -> Iterator[Machine]:
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
    """The package, installed."""
    machine.put("/root/displbe.deb", debian_package("amd64"))
    machine.check("cd /root && apt-get install -y ./displbe.deb", 120)


@pytest.fixture(scope="module")
def service(machine: Machine, package: None) -> None:
    """The running service, as the package starts it."""
    machine.check("systemctl enable --now displbe", 120)
