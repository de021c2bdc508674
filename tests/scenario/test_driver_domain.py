"""The daemon in a domain that XenStore gives no more rights than a guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from scenario.world import spec, until

from displbe.config import HeadlessSettings, Settings
from displbe.daemon import Daemon
from displbe.sim.guest import Guest
from displbe.sim.hypervisor import SimHypervisor, Xen
from displbe.sim.toolstack import Toolstack
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger

DRIVER = 7


@asynccontextmanager
async def driver_domain(folder: Path) -> AsyncIterator[tuple[Xen, SimHypervisor, Daemon]]:
    """A machine with the daemon in domain 7, where at the end nothing is held."""
    settings = Settings(sink="headless", headless=HeadlessSettings(refresh=1000))
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        Toolstack(xen.server).create_domain(DRIVER)
        await xen.start_domain(DRIVER)
        hypervisor = xen.hypervisor(DRIVER)
        daemon = Daemon(settings, hypervisor)
        await nursery.start(daemon.run)
        yield xen, hypervisor, daemon
        await until(lambda: not daemon.supervisor.devices)
        assert hypervisor.ledger == Ledger()
        nursery.cancel_scope.cancel()


async def test_guest_of_a_driver_domain(tmp_path: Path) -> None:
    """A guest is shown; when it dies, the toolstack waits for the driver domain to remove its directory."""
    async with driver_domain(tmp_path) as (xen, hypervisor, daemon):
        tools = Toolstack(xen.server)
        for _ in range(2):
            async with Guest.booted(xen, 1, spec(), backend=DRIVER) as guest:
                with trio.fail_after(30):
                    await guest.display.connected.wait()
                fb = (await guest.display.create_framebuffer(64, 48))[1]
                await guest.display.show(0, fb, 64, 48)
                assert daemon.sink.claimed("HDMI-A-1")
                assert hypervisor.ledger.buffers == 1
            assert tools.read(tools.back(1, 0, DRIVER)) is None


async def test_two_devices(tmp_path: Path) -> None:
    """One of a guest's two devices is detached: the other one's directory stays, and so does a device that is online again."""
    async with driver_domain(tmp_path) as (xen, _, daemon):
        tools = Toolstack(xen.server)
        async with Guest.booted(xen, 1, spec(), backend=DRIVER):
            tools.add_display(1, [spec("DP-1")], 3, backend=DRIVER)
            await tools.wait_state(tools.back(1, 3, DRIVER), State.INIT_WAIT)
            await tools.remove_display(1, 3, backend=DRIVER)
            assert tools.read(tools.back(1, 3, DRIVER)) is None
            assert tools.read(tools.back(1, 0, DRIVER)) is not None
            await until(lambda: list(daemon.supervisor.devices) == [(1, 0)])
