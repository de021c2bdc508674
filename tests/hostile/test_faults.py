"""Each system call fails once at each place that makes it. The daemon must go on, and no resource may be held afterwards.

First a scenario runs without faults on the real `xen.host` over a simulated kernel (kernel.py), which records each place that makes a
call. Then the scenario runs once for each place; the first call at that place fails.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from zlib import crc32

import pytest
import structlog
import trio
from hostile.kernel import Fault, Kernel
from hostile.stage import config, create, raw_buffer
from scenario.world import World, descriptors, flip_on, spec, until

from displbe.backend import changes, device, supervisor
from displbe.backend.guests import GuestSettings
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.sim import guest as sim_guest
from displbe.sim.guest import Frontend, Guest, GuestFailure
from displbe.sim.hypervisor import Xen
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.wire.displif import REQ_ALLOC, DbufDestroy, FbAttach, FbDetach, GetEdid, PageFlip
from displbe.wire.pgdir import encode_directory
from displbe.wire.xenbus import Next, State, Table, decide
from displbe.xen import gntdev, store
from displbe.xen.host import Host
from displbe.xen.port import Ledger, StoreError

FASTER = 100
"""The factor by which waits are shortened."""
PARTS: Final = 8
"""The number of tests among which the places are divided, so that as many processes can run them."""


def _hurried(backend: State, frontend: State | None, online: bool, age: float, transitions: Table) -> Next:
    step = decide(backend, frontend, online, age * FASTER, transitions)
    return Next(step.state, step.wait / FASTER, step.why)


@pytest.fixture
def patch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Shorten all waits."""
    monkeypatch.setattr(device, "decide", _hurried)
    monkeypatch.setattr(device, "RETRY", 0.05)
    monkeypatch.setattr(changes, "LOOKS", 0.002)
    monkeypatch.setattr(device, "FINAL_STATE_TIME", 0.01)
    monkeypatch.setattr(store, "_RECONNECT_FIRST", 0.005)
    monkeypatch.setattr(gntdev, "_RELEASE_PAUSE", 0.02)
    monkeypatch.setattr(supervisor, "RESTART", 0.05)
    monkeypatch.setattr(sim_guest, "RESPONSE_TIMEOUT", 0.4)
    monkeypatch.setattr(sim_guest, "FLIP_TIMEOUT", 0.4)
    return monkeypatch


async def play(guest: Guest) -> None:
    """Make every kind of call: buffers of both kinds, flips, an EDID, a driver that is removed, a connection left open."""
    display = guest.display
    for last in (False, True):
        with trio.fail_after(2):
            await display.connected.wait()
        connector = display.connectors[0]
        dbuf, fb, buffer = await display.create_framebuffer(64, 48)
        await display.show(0, fb, 64, 48)
        for _ in range(2):
            await connector.flip(fb)
        page = guest.domain.allocate(1)
        listing = guest.domain.allocate(1)
        ref, directory = guest.domain.grant(page, 0), guest.domain.grant(listing, 0)
        guest.domain.pages(listing, 1)[:] = encode_directory([ref], [directory])[0]
        await connector.order(GetEdid(0, 128, directory))
        await connector.order(create(raw_buffer(guest), 1, flags=REQ_ALLOC, gref_directory=directory))
        await connector.order(FbAttach(0, 1, 2, 64, 48, 0x34325258))
        await connector.order(config(2))
        if last:
            await connector.order(PageFlip(0, 2))
            return
        await display.hide(0)
        await connector.order(FbDetach(0, 2))
        await connector.order(DbufDestroy(0, 1))
        await display.destroy_framebuffer(dbuf, fb, buffer)
        await display.close()
        await display._switch(State.INITIALISING)
        display._changed.set()


async def connects_again(world: World, guest: Guest) -> None:
    """Check that the guest's driver is served when it is loaded again, whatever has happened. Destroy the domain while the driver runs."""
    guest.display._on_backend = ignore  # type: ignore[method-assign]
    await guest.display._switch(State.CLOSED)
    await until(lambda: world.state(1) is State.INIT_WAIT)
    display = guest.display = Frontend(guest)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(display.run)
        with trio.fail_after(30):
            await display.connected.wait()
        _, fb, _ = await display.create_framebuffer(64, 48)
        await display.show(0, fb, 64, 48)
        await display.connectors[0].flip(fb)
        nursery.cancel_scope.cancel()


async def ignore(state: State | None) -> None:
    """Replaces Frontend._on_backend: the driver does nothing."""
    await trio.lowlevel.checkpoint()


async def works(world: World, domid: int, patch: pytest.MonkeyPatch) -> None:
    """Check that a new guest is served, which waits as long as a real one."""
    with patch.context() as patient:
        for name in ("RESPONSE_TIMEOUT", "FLIP_TIMEOUT"):
            patient.setattr(sim_guest, name, 3.0)
        async with world.booted(domid, spec(f"screen-{domid}")) as guest:
            with trio.fail_after(30):
                await guest.display.connected.wait()
            async with flip_on(guest) as times:
                await until(lambda: len(times) > 1)


def allow_be_alloc(world: World) -> None:
    """Give domain 1 the name of the guest whose buffers the backend may allocate, and let it ask for that."""
    world.tools.write("/local/domain/1/name", "hostile", [("n", 0), ("r", 1)])
    world.tools.write(f"{world.tools.front(1)}/be-alloc", "1")


def nothing_is_held(daemon: Daemon, host: Host, kernel: Kernel) -> None:
    """Assert that the daemon holds nothing of any guest, nor does the kernel for it."""
    assert host.ledger == Ledger()
    assert not kernel._mapped
    assert not kernel._shared
    assert not kernel._exported
    assert daemon.quotas.guests == {}


async def run(patch: pytest.MonkeyPatch, folder: Path, wanted: Fault | None) -> Kernel:
    """Run the scenario with one fault."""
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        kernel = Kernel(xen, wanted)
        with kernel.under(patch):
            settings = Settings(
                sink="headless",
                headless=HeadlessSettings(refresh=1000),
                guest={"hostile": GuestSettings(be_alloc=True)},
            )
            world = World(xen, nursery, settings)
            host = kernel.host(patch)
            daemon = Daemon(settings, host)
            daemon.sink.wants_dmabuf = True  # no dma-buf is shown here, but each is exported and released
            await nursery.start(daemon.run)
            kernel.armed = True
            try:
                async with world.booted(1, spec("screen-1")) as guest:
                    allow_be_alloc(world)
                    try:
                        await play(guest)
                    except TOLERATED:
                        assert wanted, "nothing went wrong"
                    if kernel.failed:
                        kernel.armed = False
                        await connects_again(world, guest)
            except* TOLERATED:
                assert wanted, "nothing went wrong"
            await until(lambda: not daemon.displays.devices)
            kernel.armed = False
            nothing_is_held(daemon, host, kernel)
            await works(world, 2, patch)
            await until(lambda: not daemon.displays.devices)
            assert host.ledger == Ledger()
            nursery.cancel_scope.cancel()
    return kernel


TRIES: Final = 10
"""The number of runs in which a place should be reached again."""
TOLERATED = (GuestFailure, trio.TooSlowError, StoreError)
"""The exceptions that the scenario may raise: a fault may affect the guest that is served."""


def attempt(patch: pytest.MonkeyPatch, wanted: Fault | None) -> Kernel:
    """Run the scenario in a world of its own. Afterwards no further file may be open."""
    before = descriptors()
    with tempfile.TemporaryDirectory() as folder, structlog.testing.capture_logs():
        kernel = trio.run(run, patch, Path(folder), wanted)
    assert descriptors() == before
    return kernel


def of_a_sink(place: Fault) -> bool:
    """Return whether a sink makes the call, on memory of its own: the sinks' tests cover these."""
    callers = [line for line in place.lines if not line.startswith("xen/")]
    return place.call == "mmap" and callers[:1] != [] and callers[0].startswith("sinks/")


def of_part(places: Iterable[Fault], part: int, parts: int) -> list[Fault]:
    """Return a part of the places: divided by name, because the places that are reached differ a little from run to run."""
    return [place for place in places if crc32(repr(place).encode()) % parts == part]


def try_each(places: list[Fault], is_reached: Callable[[Fault], bool], tries: int) -> list[str]:
    """Let each place fail once, in runs of its own, and assert that nothing goes wrong. Return the places that were not reached again.

    `is_reached` runs the scenario, and raises what goes wrong. A place whose turn depends on timing (a node that somebody else removes
    first) is not reached each time.
    """
    wrong, missed = {}, []
    for place in places:
        try:
            if not any(is_reached(place) for _ in range(tries)):
                missed.append(str(place))
        except BaseException as error:
            wrong[str(place)] = repr(error)
            if os.environ.get("DISPLBE_FAULTS") == "stop":
                raise
    assert not wrong, "\n".join(f"{place}: {error}" for place, error in wrong.items())
    return missed


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_each_call_fails_once(patch: pytest.MonkeyPatch, part: int) -> None:
    quiet = attempt(patch, None)
    places = [place for place in quiet.places if not of_a_sink(place)]
    assert {place.call for place in places} == {"open", "read", "write", "close", "ioctl", "mmap", "store", "lost"}
    print(f"{len(places)} places, {sum(quiet.places.values())} calls")
    chosen = of_part(places, part, PARTS)
    missed = try_each(chosen, lambda place: attempt(patch, place).failed, TRIES)
    assert len(missed) <= len(chosen) // 8, "not reached again:\n" + "\n".join(missed)
