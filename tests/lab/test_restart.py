"""displbe ends and starts again under a running Linux guest; screens are attached to a running guest and detached."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from lab.backend import backend, no_zombie, screens
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
    no_zombie(machine)


def test_killed(machine: Machine, reference: Callable[..., Picture]) -> None:
    """`kill -9` while a guest draws, and a start at once, as a service manager does: the guest's picture is back."""
    wanted = reference()
    config = 'sink = "drm"\n'
    connector = next(iter(machine.connectors()))
    try:
        with backend(machine, config, signal="KILL", code=137):
            machine.create("killed", guest_config("twice", screens(connector), seconds=1))
            machine.wait_console("killed", "guest: drawing", 60)
            machine.expect_picture(wanted, "before-kill")
        begun = time.monotonic()
        with backend(machine, config) as again:
            started = time.monotonic()
            machine.wait_for(lambda: again.events("output on"), 60, every=0.1, why="the guest's next frame")
            shown = time.monotonic()
            print(f"\nkilled: ready after {started - begun:.1f} s, the guest's next frame after {shown - begun:.1f} s")
            machine.expect_picture(wanted, "after-kill")
            assert again.held().grant_mappings
    finally:
        machine.destroy("killed")
    no_zombie(machine)


def test_attach_and_detach(machine: Machine, reference: Callable[..., Picture]) -> None:
    """`xl vdispl-attach` and `-detach` while the guest runs, twice: neither waits for its 10 s."""
    wanted = reference()
    connector = next(iter(machine.connectors()))
    try:
        with backend(machine, 'sink = "drm"\n') as displbe:
            idle = displbe.held()
            machine.create("attach", guest_config("twice", seconds=2))
            for turn in (1, 2):
                begun = time.monotonic()
                machine.check(f"xl vdispl-attach attach backend=0 be-alloc=0 connectors={connector}:1024x768")
                attached = time.monotonic()
                machine.expect_picture(wanted, f"attached-{turn}")
                number = machine.check("xl vdispl-list attach").splitlines()[1].split()[0]
                leaving = time.monotonic()
                machine.check(f"xl vdispl-detach attach {number}")
                left = time.monotonic()
                machine.wait_for(lambda: displbe.held() == idle, 20, why="everything released")
                print(f"\nattached in {attached - begun:.1f} s, detached in {left - leaving:.1f} s")
                assert max(attached - begun, left - leaving) < 9
    finally:
        machine.destroy("attach")
    no_zombie(machine)
