"""displbe ends and starts again under a running Linux guest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from lab.backend import backend, screens
from lab.pictures import Picture
from lab.vm import Machine, guest_config


@pytest.mark.parametrize("zero_copy", ["off", "require"])
def test_restart(machine: Machine, reference: Callable[..., Picture], zero_copy: str) -> None:
    """SIGTERM while a guest shows its picture: the daemon ends with code 0 and nothing stays mapped.

    Started again, it serves the same guest again: the guest's driver comes back with new rings.
    """
    wanted = reference()
    config = f'sink = "drm"\n[drm]\nzero-copy = "{zero_copy}"\n'
    connector = next(iter(machine.connectors()))
    try:
        with backend(machine, config):
            machine.create("restart", guest_config("twice", screens(connector), seconds=15))
            machine.wait_console("restart", "guest: drawing", 60)
            machine.expect_picture(wanted, f"before-restart-{zero_copy}")
        assert machine.run("grep -c xen_gntdev /sys/kernel/debug/dma_buf/bufinfo").output.strip() == "0"
        with backend(machine, config):
            machine.wait_console("restart", "guest: drawing", 90, count=2)
            machine.expect_picture(wanted, f"after-restart-{zero_copy}")
    finally:
        machine.destroy("restart")
    assert "(null)" not in machine.check("xl list")
