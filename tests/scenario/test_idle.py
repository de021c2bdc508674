"""A guest whose picture stands still does not keep the processor awake."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from scenario.cards import Screens, hypervisor_on, machine_on

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import Xen
from displbe.sim.toolstack import ConnectorSpec


class Waits(trio.abc.Instrument):
    """Counts the loop's waits that last: each ends with a wake-up."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += timeout > 0


@pytest.mark.parametrize("screens", ["headless", "pump"])
async def test_a_still_picture_wakes_the_loop_twice_a_second_at_most(
    screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/bench/idle.py measures all sinks, and their threads."""
    settings = Settings(sink="headless" if screens == "headless" else "drm", control=ControlSettings(socket=""))
    async with (
        machine_on(screens, tmp_path, monkeypatch) as board,
        Xen(tmp_path).running() as xen,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(Daemon(settings, hypervisor_on(xen, board)).run)
        async with Guest.booted(xen, 1, ConnectorSpec("HDMI-A-1", 64, 48)) as guest:
            await guest.display.connected.wait()
            _, framebuffer, _ = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(0, framebuffer, 64, 48)
            await guest.display.connectors[0].flip(framebuffer)
            await trio.sleep(1)
            waits = Waits()
            trio.lowlevel.add_instrument(waits)
            await trio.sleep(4)
            trio.lowlevel.remove_instrument(waits)
            assert waits.count <= 2 * 4 + 1
        nursery.cancel_scope.cancel()
