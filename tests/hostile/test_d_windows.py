"""Table D, windows: nothing that a guest does opens a window, since compositors focus a window that they map."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hostile.rows import row
from hostile.window_attacks import ATTACKS, WINDOW_SIZE, screen
from scenario.world import World, descriptors, spec, until
from sinks.compositor import CORE, FakeCompositor

from displbe.backend.quota import Limits
from displbe.config import Settings
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Frontend, Guest
from displbe.sim.hypervisor import Xen
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.sinks.wayland.surface import SurfaceState
from displbe.xen.port import Ledger

BAD, GOOD = 1, 2
MAPPING = {
    ("wl_compositor", "create_surface"),
    *(("xdg_surface", request) for request in ("get_toplevel", "destroy")),
    *(("xdg_toplevel", request) for request in ("set_fullscreen", "set_maximized", "destroy", "set_title")),
}
"""Requests that make a window, or make a compositor raise or focus it."""


@contextlib.asynccontextmanager
async def windows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[World, FakeCompositor]]:
    """Run a world whose guests are windows of a compositor. At its end, none of the guests' resources may be held."""
    compositor = FakeCompositor({"wl_output": 4, **CORE})
    monkeypatch.setattr(WaylandSink.__init__, "__defaults__", (compositor.opened,))
    settings = Settings(
        sink="wayland",
        wayland=WaylandSettings(on_close="detach"),
        limits=Limits(modesets_per_second=10_000.0, reconnects_per_second=1000.0),
        control=ControlSettings(socket=""),
    )
    before = descriptors()
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        compositor.nursery = nursery
        world = World(xen, nursery, settings)
        await world.start_daemon()
        yield world, compositor
        await world.settled()
        await world.stop_daemon()
        assert world.hypervisor.ledger == Ledger()
        nursery.cancel_scope.cancel()
    assert descriptors() == before


@pytest.mark.parametrize("attack", ATTACKS)
@row(
    "SET_CONFIG off and on, FB_DETACH of the framebuffer that is shown and a flip, modes of other sizes, the driver unloaded and "
    "loaded, on a compositor or an X server, whose user types into another window",
    "the guest's window stays as it is, black where the guest shows nothing; nothing maps, raises or focuses a window",
)
async def test_d13_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Callable[[Guest], Awaitable[None]]
) -> None:
    async with (
        windows(tmp_path, monkeypatch) as (world, compositor),
        world.guest(GOOD, spec("good", *WINDOW_SIZE)) as good,
        world.guest(BAD, spec("bad", *WINDOW_SIZE)) as bad,
    ):
        await screen(good)
        await until(lambda: len(compositor.clients) == 2 and all(client.surfaces for client in compositor.clients))
        theirs = next(
            client for client in compositor.clients if any("bad" in each.title for each in client.surfaces.values())
        )
        (surface,) = theirs.surfaces.values()
        await until(lambda: surface.shown is not None)
        assert surface.size == WINDOW_SIZE
        before = [asked[:2] for asked in theirs.asked].count
        counts = {request: before(request) for request in MAPPING}
        assert counts["wl_compositor", "create_surface"] == counts["xdg_surface", "get_toplevel"] == 1
        await attack(bad)
        after = [asked[:2] for asked in theirs.asked].count
        assert {request: after(request) for request in MAPPING} == counts
        assert (list(theirs.surfaces.values()), len(compositor.clients)) == ([surface], 2)
        await until(lambda: surface.shown is not None and surface.shown.is_black)


@row(
    "the same when the user has closed the guest's window",
    "the window stays closed, until the operator opens it (`displbectl reopen`), or the toolstack creates another device "
    "for the guest later",
)
async def test_d13_closed_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with windows(tmp_path, monkeypatch) as (world, compositor):
        async with world.guest(BAD, spec("bad", *WINDOW_SIZE)) as bad:
            await until(lambda: compositor.clients and compositor.client.surfaces)
            client = compositor.client
            (surface,) = client.surfaces.values()
            client.event(surface.toplevel, "close")
            await until(lambda: not client.surfaces)
            for attack in ATTACKS:
                await attack(bad)
            await screen(bad)
            assert client.surfaces == {}
            output = world.daemon.sink.claimed("bad")
            assert output is not None
            assert (output.path, "displbectl reopen 1" in output.reason) == ("", True)
            display = world.device(BAD).service
            display.reopen(display.device_connectors[0])
            await until(lambda: output.path)
            assert len(client.surfaces) == 1
            client.event(next(iter(client.surfaces.values())).toplevel, "close")
            await until(lambda: not client.surfaces)
        await until(lambda: client.closed)
        async with world.booted(BAD, spec("bad", *WINDOW_SIZE)):
            await until(lambda: len(compositor.clients) == 2 and compositor.client.surfaces)


@row(
    "the guest reboots itself in a loop (xl removes its devices and creates them again, for a new domain), also after the user has closed "
    "its window",
    "the window stays for 10 s, black and without input, and the new domain takes it over as it is; a closed one stays closed",
)
async def test_d13_reboots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        windows(tmp_path, monkeypatch) as (world, compositor),
        world.guest(GOOD, spec("good", *WINDOW_SIZE)) as good,
    ):
        await screen(good)
        await until(lambda: compositor.clients and compositor.client.surfaces)
        for domid in range(10, 16):
            async with world.booted(domid, spec("bad", *WINDOW_SIZE), name="bad") as bad:
                await until(bad.display.connected.is_set)
                await until(lambda: len(compositor.clients) == 2)
                theirs = compositor.clients[1]
                if domid <= 12:
                    await until(lambda: theirs.surfaces)  # noqa: B023
                    (surface,) = theirs.surfaces.values()
                    await screen(bad)
                    await until(lambda: surface.shown is not None and not surface.shown.is_black)  # noqa: B023
                else:
                    await screen(bad)
                    assert theirs.surfaces == {}
                if domid == 12:
                    theirs.event(surface.toplevel, "close")
                    await until(lambda: not theirs.surfaces)  # noqa: B023
        asked = [asked[:2] for asked in theirs.asked].count
        assert asked(("wl_compositor", "create_surface")) == asked(("xdg_surface", "get_toplevel")) == 1
        assert len(compositor.clients) == 2
        sink = world.daemon.sink
        assert isinstance(sink, WaylandSink)
        assert {claimant.name for claimant in sink.clients} == {"", "bad"}


async def never(frontend: Frontend) -> None:
    """Do not connect: the guest's driver is not loaded."""
    await trio.sleep_forever()


async def test_a_window_is_there_before_its_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is black, in the connector's resolution, and goes with the device."""
    monkeypatch.setattr(Frontend, "_publish", never)
    async with windows(tmp_path, monkeypatch) as (world, compositor):
        async with world.booted(BAD, spec("bad", *WINDOW_SIZE)):
            await until(lambda: compositor.clients and compositor.client.surfaces)
            (surface,) = compositor.client.surfaces.values()
            await until(lambda: surface.shown is not None)
            assert surface.shown is not None
            assert surface.shown.is_black
            assert surface.size == WINDOW_SIZE
            sink = world.daemon.sink
            assert isinstance(sink, WaylandSink)
            (client,) = sink.clients.values()
            assert client.windows["bad"].surface.state is SurfaceState.BLACK
            assert client.outputs == {}
        await until(lambda: compositor.clients[0].closed)


async def test_two_devices_with_one_connector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device that came first has the window, also while its guest is away. The other gets one when the first device is gone."""
    ends = trio.Event()

    async def run_first(*, task_status: trio.TaskStatus[None]) -> None:
        async with world.guest(BAD, spec("one", *WINDOW_SIZE)) as first:
            await first.display.close()
            task_status.started()
            await ends.wait()

    async with windows(tmp_path, monkeypatch) as (world, compositor), trio.open_nursery() as nursery:
        await nursery.start(run_first)
        await until(lambda: compositor.clients and compositor.client.surfaces)
        async with world.booted(GOOD, spec("one", *WINDOW_SIZE)) as second:
            await until(lambda: world.error(GOOD))
            assert "taken by another guest" in (world.error(GOOD) or "")
            assert len(compositor.clients) == 1
            ends.set()
            await until(second.display.connected.is_set)
            await until(lambda: len(compositor.clients) == 2 and compositor.client.surfaces)
