"""displbe ends and starts again under a running Linux guest; screens are attached to a running guest and detached."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

import pytest
from lab.backend import Backend, backend, no_zombie, screens
from lab.figures import Figures
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
"""Maximum seconds from `kill -9` to the guest's next frame, if the emulated machine needs no more than START for BARE."""
BARE: Final = "begun=$(date +%s%N); python3 -c 'import trio'; echo $(($(date +%s%N) - begun))"
"""A command that prints the nanoseconds that a bare start of the interpreter takes."""
START: Final = 3.1
"""Seconds of a bare start in Dom0, beside a guest that flips, on a quiet host."""


def shown_again(displbe: Backend, before: int) -> bool:
    """Return whether an output has been switched on more often than `before`."""
    return len(displbe.events("output on")) > before


@pytest.mark.figure
def test_killed(machine: Machine, figures: Figures) -> None:
    """After `kill -9` under a guest that flips, and a restart as by a service manager, the guest's next frame is on the screen within 5 s,
    and nothing of the dead daemon stays.

    The guest's request to the dead daemon waits for 3 s of this time. The interpreter's start takes about as long under emulation. The
    limit grows with the time of a bare start if that is longer than on a quiet host.
    """
    connector = next(iter(machine.connectors()))
    wanted = drawn(1024, 768, 0)

    def kill() -> tuple[float, float]:
        bare = min(float(machine.check(BARE)) / 1e9 for _ in range(3))  # the first start reads its files from the disk
        before = len(displbe.events("output on"))
        at = displbe.kill()
        machine.wait_for(partial(shown_again, displbe, before), 60, why="the guest's next frame")
        shown = displbe.events("output on")[-1]["timestamp"]
        took = (datetime.fromisoformat(str(shown)) - at).total_seconds()
        print(f"\nkilled: the guest's next frame after {took:.1f} s, where a bare start takes {bare:.2f} s")
        return took, LIMIT * max(1.0, bare / START)

    try:
        with backend(machine, 'sink = "drm"\n') as displbe:
            machine.create("killed", guest_config("survive", screens(connector)))
            machine.wait_console("killed", "survive: card 1", 60)
            machine.expect_picture(wanted, "before-kill")
            held = displbe.held()
            within = f"the next frame at most {LIMIT:g} s after kill -9 (found, allowed here)"
            figures.take(machine, within, kill, lambda found: found[0] <= found[1])
            machine.expect_picture(wanted, "after-kill")
            machine.wait_for(lambda: displbe.held() == held, 20, why="as much held as before")
    finally:
        machine.destroy("killed")
    no_zombie(machine)


@pytest.mark.figure
def test_attach_and_detach(machine: Machine, reference: Callable[..., Picture], figures: Figures) -> None:
    """`xl vdispl-attach` and `xl vdispl-detach` succeed twice while the guest runs. Neither runs into its timeout of 10 s."""
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
                took = attached - begun, left - leaving
                figures.note("attached and detached within 9 s", took, max(took) < 9)
    finally:
        machine.destroy("attach")
    no_zombie(machine)
