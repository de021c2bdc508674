"""Guests and daemons start and end, in order and out of order. Afterwards no guest's resources are held."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest
import structlog
import trio
from scenario.world import World, descriptors, exchange, flip_on, spec, until

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.ops.settings import ControlSettings
from displbe.sim.guest import Frontend, Guest
from displbe.sim.hypervisor import Xen
from displbe.wire.displif import PageFlip
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger

RSP_PROD = 8


async def seen(display: Frontend, *states: State, timeout: float = 30.0) -> None:
    """Wait until these are the last backend states that the guest has seen."""
    await until(lambda: tuple(display.history[-len(states) :]) == states, timeout)


async def reconnected(display: Frontend) -> None:
    """Wait for the next connection."""
    await until(lambda: display.connectors and display.connected.is_set())


def freeze(display: Frontend) -> None:
    """Stop the guest's driver from reacting to the backend's state; `del display._on_backend` lets it go on."""

    async def ignore(state: State | None) -> None:
        await trio.lowlevel.checkpoint()

    display._on_backend = ignore  # type: ignore[method-assign]


def forget_rings() -> None:
    """Replaces Frontend.free_rings: the kernel that allocated the rings is gone."""


async def work(guest: Guest, flips: int = 5) -> None:
    """Flip a few times."""
    async with flip_on(guest) as times:
        await until(lambda: len(times) >= flips)


async def test_a_connection(world: World) -> None:
    async with world.guest(1) as guest:
        assert guest.display.history == [State.INIT_WAIT, State.CONNECTED]
        assert world.hypervisor.ledger == Ledger(ports=2, pages=2)
        assert world.held(1) == {"connectors": 1}
        await work(guest)
        assert world.hypervisor.ledger == Ledger(ports=2, pages=2)
        assert world.held(1) == {"connectors": 1}


async def test_init_wait_stands_long_enough_for_the_toolstack_to_see_it(world: World) -> None:
    async with world.booted(1, spec()) as guest:
        begun = time.monotonic()
        await guest.display.connected.wait()
        assert time.monotonic() - begun > 0.08


async def test_the_driver_is_removed_and_loaded_again(world: World) -> None:
    async with world.guest(1) as guest:
        for _ in range(2):
            _, fb, buffer = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(0, fb, 64, 48)
            assert world.hypervisor.ledger.buffers == 1
            begun = time.monotonic()
            await guest.display.close()
            assert time.monotonic() - begun < 1, "Linux waits no longer"
            assert world.hypervisor.ledger == Ledger()
            assert world.held(1) == {}
            buffer.free()
            await guest.display._switch(State.INITIALISING)
            guest.display._changed.set()  # the module's probe reads the backend's state, which is 2 already
            await reconnected(guest.display)
            await work(guest)


async def test_a_guest_shuts_down(world: World) -> None:
    """A guest that shuts down sees displbe's 5 in time: Linux waits five seconds to read exactly 5, goes to 6, and its domain dies."""
    async with world.guest(1) as guest:
        await work(guest)
        await guest.display._switch(State.CLOSING)
        await seen(guest.display, State.CONNECTED, State.CLOSING, timeout=1)
        assert world.hypervisor.ledger == Ledger()
        await guest.display._switch(State.CLOSED)
        await seen(guest.display, State.CLOSING, State.CLOSED, timeout=1)
        guest.display.free_rings()


async def test_kexec(world: World) -> None:
    """The next kernel waits for 5, 6 and 2 one after the other (xenbus_reset_state), then starts as at boot."""
    async with world.guest(1) as guest:
        display = guest.display
        display.free_rings = forget_rings  # type: ignore[method-assign]
        for ours, theirs in ((State.CLOSING, State.CLOSING), (State.CLOSED, State.CLOSED)):
            await display._switch(theirs)
            await seen(display, ours, timeout=2)
        display.connected = trio.Event()
        await display._switch(State.INITIALISING)
        await seen(display, State.INIT_WAIT, State.CONNECTED)
        await work(guest)


async def test_a_guest_is_destroyed_while_it_flips(world: World) -> None:
    for _ in range(3):
        with trio.CancelScope() as scope:
            async with world.guest(1) as guest, flip_on(guest) as times:
                await until(lambda: len(times) > 3)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await world.settled()


async def test_a_guests_nodes_vanish(world: World) -> None:
    """displbe releases everything when the toolstack removes the directories without notice, as after its timeout."""
    async with world.guest(1) as guest:
        _, fb, _ = await guest.display.create_framebuffer(64, 48)
        await guest.display.show(0, fb, 64, 48)
        await exchange(guest.display.connectors[0], PageFlip(0, fb))
        freeze(guest.display)
        world.tools.remove(world.tools.back(1))
        world.tools.remove(world.tools.front(1))
        await world.settled()


async def test_the_directory_of_all_of_a_guests_displays_vanishes(world: World) -> None:
    """XenStore reports the removed directory, not the displays in it. The guest has not noticed anything yet."""
    async with world.guest(1) as guest:
        freeze(guest.display)
        await trio.sleep(0.5)  # until nothing else is left to be looked at
        world.tools.remove(world.tools.back(1).rpartition("/")[0])
        await until(lambda: not world.daemon.displays.devices)
        await world.settled()


async def test_the_same_domain_id_at_once(world: World) -> None:
    """A new guest gets the old guest's domain id before the daemon has noticed that the old guest has gone."""
    world.tools.create_domain(1)
    await world.xen.start_domain(1)
    world.tools.add_display(1, [spec()])
    async with trio.open_nursery() as nursery:
        old = Guest(world.xen, 1)
        await nursery.start(old.hypervisor.run)
        nursery.start_soon(old.display.run)
        await reconnected(old.display)
        _, fb, _ = await old.display.create_framebuffer(64, 48)
        await old.display.show(0, fb, 64, 48)
        await exchange(old.display.connectors[0], PageFlip(0, fb))
        nursery.cancel_scope.cancel()
    grants = list(old.domain.grants.values())
    assert any(grant.mapped for grant in grants)
    world.xen.stop_domain(1)
    for path in (world.tools.back(1), world.tools.front(1)):
        world.tools.remove(path)
    world.tools.destroy_domain(1)
    async with world.guest(1) as new:
        assert not any(grant.mapped for grant in grants)
        await work(new)
        assert world.hypervisor.ledger == Ledger(ports=2, pages=2)


async def test_ten_reboots(world: World) -> None:
    async with world.guest(1) as guest:
        await work(guest)
    await world.settled()
    gc.collect()
    before = descriptors()
    for _ in range(10):
        async with world.guest(1, spec("left"), spec("right")) as guest:
            for index in range(2):
                _, fb, _ = await guest.display.create_framebuffer(64, 48)
                await guest.display.show(index, fb, 64, 48)
                await guest.display.connectors[index].flip(fb)
        await world.settled()
    assert descriptors() == before


async def test_reconnecting_leaves_nothing(world: World) -> None:
    async with world.guest(1) as guest:
        await work(guest)
        before = descriptors()
        for _ in range(3):
            _, fb, _ = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(0, fb, 64, 48)
            await guest.display.close()
            await guest.display._switch(State.INITIALISING)
            guest.display._changed.set()
            await reconnected(guest.display)
        assert world.hypervisor.ledger == Ledger(ports=2, pages=2)
        assert world.held(1) == {"connectors": 1}
        assert descriptors() == before


async def test_attach_and_detach_while_the_guest_runs(world: World) -> None:
    """`xl vdispl-attach` and `xl vdispl-detach` of a second device."""
    async with world.guest(1) as guest:
        for _ in range(2):
            world.tools.add_display(1, [spec("DP-1")], number=3)
            await world.tools.wait_state(world.tools.back(1, 3), State.INIT_WAIT, timeout=10)
            second = Frontend(guest, 3)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.run)
                await reconnected(second)
                assert world.hypervisor.ledger == Ledger(ports=4, pages=4)
                assert world.held(1) == {"connectors": 2}
                await work(guest)
                await world.tools.remove_display(1, 3)
                nursery.cancel_scope.cancel()
            await until(lambda: (1, 3) not in world.daemon.displays.devices)
            assert world.hypervisor.ledger == Ledger(ports=2, pages=2)
            assert world.held(1) == {"connectors": 1}
        await work(guest)


async def test_a_frontend_that_changes_its_mind_all_the_time(world: World) -> None:
    """After random states for half a second, a normal start works."""
    async with world.guest(1) as guest:
        freeze(guest.display)
        front = world.tools.front(1)
        for number in range(250):
            value = b"1534672018"[number * 7 % 10 : number * 7 % 10 + 1] if number % 11 else b"4 "
            await guest.hypervisor.store.write(f"{front}/state", value)
            await trio.sleep(0.002)
        await guest.hypervisor.store.write(f"{front}/state", b"1")
        await trio.sleep(0.6)
        assert world.state(1) is State.INIT_WAIT
        assert world.hypervisor.ledger == Ledger()
        del guest.display._on_backend
        guest.display.connected = trio.Event()
        guest.display._changed.set()
        await reconnected(guest.display)
        await work(guest)
        assert world.hypervisor.ledger == Ledger(ports=2, pages=2)


# The daemon


async def test_the_daemon_is_told_to_end(world: World) -> None:
    async with world.guest(1) as one, world.guest(2, spec("DP-1")) as other:
        for guest in (one, other):
            _, fb, _ = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(0, fb, 64, 48)
        old = world.hypervisor
        await world.stop_daemon()
        assert old.ledger == Ledger()
        for guest in (one, other):
            await seen(guest.display, State.CONNECTED, State.CLOSING, State.CLOSED)
            await until(lambda: guest.display.state is State.INITIALISING)  # noqa: B023 - waited for
        await world.start_daemon()
        for guest in (one, other):
            await reconnected(guest.display)
            await work(guest)


async def test_the_daemon_is_told_to_end_while_guests_flip(world: World) -> None:
    async with world.guest(1) as guest:
        connector = guest.display.connectors[0]
        _, fb, _ = await guest.display.create_framebuffer(64, 48)
        await guest.display.show(0, fb, 64, 48)

        async def flip() -> None:
            while True:
                await connector.flip(fb)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flip)
            await until(lambda: len(connector.flips_done) > 3)
            await world.stop_daemon()
            assert world.hypervisor.ledger == Ledger()
            nursery.cancel_scope.cancel()
        await world.start_daemon()
        await reconnected(guest.display)


async def test_the_daemon_is_told_to_end_before_its_screen_is_there(tmp_path: Path) -> None:
    async def wait_for_a_screen(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.sleep_forever()

    async with Xen(tmp_path).running() as xen:
        daemon = Daemon(Settings(sink="headless", control=ControlSettings(socket="")), xen.hypervisor(0))
        daemon.sink.run = wait_for_a_screen  # type: ignore[method-assign]
        with trio.fail_after(2), trio.move_on_after(0.1) as scope:
            await daemon.run()
        assert scope.cancelled_caught


async def test_the_daemon_ends_while_xenstore_is_away(world: World) -> None:
    async with world.guest(1):
        world.xen.server.release(0)
        await trio.sleep(0.1)
        begun = time.monotonic()
        await world.stop_daemon()
        assert time.monotonic() - begun < 3
        assert world.hypervisor.ledger == Ledger()
        await world._nursery.start(world.xen.server.serve, 0)
        await world.start_daemon()


@pytest.mark.parametrize("told_early", [False, True])
async def test_the_daemon_is_killed_under_a_guest(world: World, told_early: bool) -> None:
    """After a kill, with guest and backend at 4, the old rings are never served, and the guest starts anew.

    The guest may see the states change before the next daemon runs.
    """
    async with world.guest(1) as guest:
        await work(guest)
        old = guest.display.connectors[0]
        answered = old.ring_page.load(RSP_PROD)
        guest.display.free_rings = forget_rings  # type: ignore[method-assign]
        await world.kill_daemon()
        assert (world.state(1), guest.display.state) == (State.CONNECTED, State.CONNECTED)
        assert old.ring.put(bytes(64))
        old.channel.notify()
        if told_early:
            await world.begin()
            await seen(guest.display, State.CONNECTED, State.CLOSING, State.CLOSED)
        await world.start_daemon()
        await seen(guest.display, State.CONNECTED, State.CLOSING, State.CLOSED, State.INIT_WAIT, State.CONNECTED)
        await until(lambda: guest.display.state is State.CONNECTED)
        assert old.ring_page.load(RSP_PROD) == answered
        del guest.display.free_rings
        await work(guest)


@pytest.mark.parametrize("told_early", [False, True])
async def test_the_daemon_is_killed_and_the_guest_does_not_react(world: World, told_early: bool) -> None:
    """The backend stays at 6 until the guest has given up its old rings."""
    async with world.guest(1) as guest:
        freeze(guest.display)
        await world.kill_daemon()
        if told_early:
            await world.begin()
        await world.start_daemon()
        await seen(guest.display, State.CLOSED)
        await trio.sleep(0.5)
        assert world.state(1) is State.CLOSED
        assert world.hypervisor.ledger == Ledger()
        del guest.display._on_backend
        guest.display._changed.set()
        await seen(guest.display, State.INIT_WAIT, State.CONNECTED)
        await work(guest)


async def test_the_daemon_is_killed_before_the_guest_has_connected(world: World) -> None:
    """The handshake with a frontend at 3 goes on as at a start: its rings are unused, and it does not go back by itself."""
    async with world.booted(1, spec()) as guest:
        await until(lambda: guest.display.state is State.INITIALISED)
        await world.kill_daemon()
        before = world.state(1)
        await world.begin()
        assert world.state(1) is before
        await world.start_daemon()
        await reconnected(guest.display)
        await work(guest)


async def test_a_guest_that_was_there_before_the_daemon(tmp_path: Path) -> None:
    async with World.running(tmp_path) as world:
        await world.stop_daemon()
        world.tools.create_domain(1)
        await world.xen.start_domain(1)
        world.tools.add_display(1, [spec()])
        async with trio.open_nursery() as nursery:
            guest = Guest(world.xen, 1)
            await nursery.start(guest.hypervisor.run)
            nursery.start_soon(guest.display.run)
            await trio.sleep(0.1)
            await world.start_daemon()
            await reconnected(guest.display)
            await work(guest)
            await world.tools.remove_display(1)
            nursery.cancel_scope.cancel()
        world.xen.stop_domain(1)


async def test_other_rings(tmp_path: Path) -> None:
    """When a frontend restarts with other rings, faster than its states are seen, the new rings are served and the old ones released."""
    async with World.running(tmp_path) as world, world.guest(1) as guest:
        display = guest.display
        old = display.connectors
        display.connected = trio.Event()
        await display._publish()
        with trio.fail_after(30):
            await display.connected.wait()
        for connector in old:
            connector.free()
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 2)


@pytest.mark.parametrize("name", ["07", "007", "+7", "7 ", "7"])
async def test_a_device_has_one_name(world: World, name: str) -> None:
    """A directory whose name is another form of a number is no device, and keeps no guest from its service."""
    async with world.guest(1):
        home, tree = "/local/domain/0/backend/vdispl/1", world.xen.server.tree
        with structlog.testing.capture_logs() as lines:
            tree.write(0, f"{home}/{name}/state", b"1")
            world.xen.server.fire([f"{home}/{name}/state"])
            await trio.sleep(0.3)
        found = [line["device"] for line in lines if line["event"] == "device found"]
        assert found == (["backend/vdispl/1/7"] if name == "7" else [])
        assert sorted(world.daemon.displays.devices) == ([(1, 0), (1, 7)] if name == "7" else [(1, 0)])
        tree.remove(0, f"{home}/{name}")
        world.xen.server.fire([f"{home}/{name}"])


async def test_a_directory_without_a_state_is_not_a_device(world: World) -> None:
    """A program has written a node below a directory that the toolstack had just removed, and so has made the directory again."""
    world.tools.write("/local/domain/0/backend/vdispl/7/0/error", "late")
    async with world.guest(1):
        assert set(world.daemon.displays.devices) == {(1, 0)}
        world.tools.write("/local/domain/0/backend/vdispl/7/0/state", "1")
        await until(lambda: set(world.daemon.displays.devices) == {(1, 0), (7, 0)})
        world.tools.remove("/local/domain/0/backend/vdispl/7")
