"""displbe ends and starts again under a running Linux guest; screens are attached to a running guest and detached."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

import pytest
from lab.backend import Backend, backend, no_zombie, screens
from lab.figures import Figure
from lab.pictures import Picture, drawn
from lab.vm import Machine, guest_config


@pytest.mark.parametrize("zero_copy", ["off", "require"])
def test_restart(machine: Machine, reference: Callable[..., Picture], zero_copy: str) -> None:
    """SIGTERM ends the daemon with code 0 while a guest shows its picture, and nothing stays mapped.

    The next daemon serves the same guest again: the guest's driver connects with new rings.
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


LIMIT: Final = 5.0
"""Maximum seconds from `kill -9` to the guest's next frame. The guest's request to the dead daemon waits for 3 s of this time."""


def shown_again(displbe: Backend, before: int) -> bool:
    """Return whether an output has been switched on more often than `before`."""
    return len(displbe.events("output on")) > before


def test_killed(machine: Machine, figure: Figure) -> None:
    """After `kill -9` under a guest that flips, and a restart as by a service manager, the guest's next frame is on the screen within 5 s,
    and nothing of the dead daemon stays.
    """
    connector = next(iter(machine.connectors()))
    wanted = drawn(1024, 768, 0)

    try:
        with backend(machine, 'sink = "drm"\n') as displbe:
            machine.create("killed", guest_config("survive", screens(connector)))
            machine.wait_console("killed", "survive: card 1", 60)
            machine.expect_picture(wanted, "before-kill")
            held = displbe.held()
            before = len(displbe.events("output on"))
            at = displbe.kill()
            machine.wait_for(partial(shown_again, displbe, before), 60, why="the guest's next frame")
            shown = displbe.events("output on")[-1]["timestamp"]
            took = (datetime.fromisoformat(str(shown)) - at).total_seconds()
            figure(f"killed: the guest's next frame after {took:.1f} s")
            assert took <= LIMIT
            machine.expect_picture(wanted, "after-kill")
            machine.wait_for(lambda: displbe.held() == held, 20, why="as much held as before")
    finally:
        machine.destroy("killed")
    no_zombie(machine)


def test_attach_and_detach(machine: Machine, reference: Callable[..., Picture], figure: Figure) -> None:
    """`xl vdispl-attach` and `xl vdispl-detach` succeed twice while the guest runs. Neither runs into its timeout of 10 s."""
    wanted = reference()
    connector = next(iter(machine.connectors()))
    try:
        with backend(machine, 'sink = "drm"\n') as displbe:
            idle = displbe.held()
            machine.create("attach", guest_config("twice", seconds=2))
            for turn in (1, 2):
                attach = f"xl vdispl-attach attach backend=0 be-alloc=0 connectors={connector}:1024x768"
                attached = machine.timed(attach)
                machine.expect_picture(wanted, f"attached-{turn}")
                number = machine.check("xl vdispl-list attach").splitlines()[1].split()[0]
                detached = machine.timed(f"xl vdispl-detach attach {number}")
                machine.wait_for(lambda: displbe.held() == idle, 20, why="everything released")
                figure(f"attached after {attached:.1f} s, detached after {detached:.1f} s")
                assert max(attached, detached) < 2
    finally:
        machine.destroy("attach")
    no_zombie(machine)
