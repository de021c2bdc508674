"""Drivers that refuse: bochs and cirrus, emulated PCI cards, in a machine of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.backend import TREE, backend, screens
from lab.conftest import project
from lab.pictures import drawn
from lab.test_drm import config
from lab.tried import EXACT, Tried
from lab.vm import Machine, guest_config

DEVICES = {"bochs-drm": "bochs-display", "cirrus-qemu": "cirrus-vga"}


@pytest.fixture(scope="module")
def computer(out: Path) -> Iterator[Machine]:
    """Xen and Dom0 with both cards."""
    devices = [f"{device},id={driver},romfile=" for driver, device in DEVICES.items()]
    with Machine(out=out, devices=devices) as running:
        running.put_tree(project(), TREE)
        yield running


@pytest.mark.parametrize("driver", DEVICES)
def test_copied_where_zero_copy_is_refused(computer: Machine, driver: str, tried: Tried) -> None:
    """The driver cannot show a guest's dma-buf: one log line says why, and the picture is copied, also when the guest draws later."""
    find = "for c in /sys/class/drm/card?-*; do echo $(basename $(readlink $c/device/device/driver)) ${c#*card?-}; done"
    connector = dict(line.split() for line in computer.check(find).splitlines())[driver]
    with backend(computer, config()) as displbe:
        try:
            computer.create("one", guest_config("draw", screens(connector, "800x600"), mode="800x600", extra="do=1"))
            computer.wait_console("one", "draw: step 1", 90)
            if driver != "cirrus-qemu":  # an old VGA card, whose I/O ports do not work in this machine for any program
                computer.expect_picture(drawn(800, 600, 1), driver, driver, timeout=15)
                tried(computer, "one", connector, "DRM", "copy", EXACT)
        finally:
            computer.destroy("one")
        (why,) = displbe.events("frames are copied")
        print(f"\n{driver}: {why['reason']}")
        assert displbe.events("output on")[-1]["path"] == "copy"
