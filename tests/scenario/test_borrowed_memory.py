"""Guests that take their memory back while displbe reads it. Memory that is unmapped traps (tests/memory_watch.py)."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from memory_watch import content
from scenario.cards import Screens, world_on
from scenario.test_lifecycle import reconnected
from scenario.test_operator import ctl, held_copies
from scenario.world import World, spec, until

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.ops.control import CommandError, Request
from displbe.sim.guest import BorrowedBuffer, Guest
from displbe.sinks.frame_copy import copy_frame
from displbe.wire.displif import REQ_ALLOC, DbufCreate, DbufDestroy, FbAttach, SetConfig
from displbe.wire.formats import fourcc
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger

WIDTH, HEIGHT = 1280, 720
FAST = Limits(reconnects_per_second=1e6, requests_per_second=1e6, modesets_per_second=1e6)


class Operator:
    """An operator who takes pictures of a guest in a loop."""

    def __init__(self, world: World) -> None:
        self.pictures = 0
        self.refused: set[str] = set()
        self.ended = False
        self._world = world

    async def watch(self) -> None:
        """Take pictures until `ended`."""
        screenshot = self._world.daemon.commands.table()["screenshot"]
        while not self.ended:
            try:
                answer = await screenshot(Request(1, "screenshot", "1"))
            except CommandError as error:
                self.refused.add(str(error))
                await trio.sleep(0.001)
                continue
            assert answer.held is not None
            async with answer.held:
                assert len(answer.body) == WIDTH * HEIGHT * 4
                self.pictures += 1


async def begin_again(world: World, guest: Guest) -> None:
    """Let the guest disconnect and connect again. Unlike Linux, it has time: the machine may be busy."""
    display = guest.display
    await display._switch(State.CLOSING)
    await until(lambda: world.state(1) is State.INIT_WAIT)
    display.free_rings()
    display.connected = trio.Event()
    await display._switch(State.INITIALISING)
    display._changed.set()
    await reconnected(display)


async def shown(guest: Guest) -> None:
    """Show a framebuffer. The guest frees nothing when it disconnects."""
    _, fb, _ = await guest.display.create_framebuffer(WIDTH, HEIGHT)
    await guest.display.show(0, fb, WIDTH, HEIGHT)


def read_twice(*arguments: Any) -> None:
    """Copy a frame as a slow machine does: the guest has time to take its memory back meanwhile."""
    copy_frame(*arguments)
    time.sleep(0.02)
    copy_frame(*arguments)


async def test_pictures_of_a_guest_that_reconnects(
    screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture is whole or is refused; nothing is held at the end."""
    turns = 12 if screens == "headless" else 4  # each takes nearly a second
    monkeypatch.setattr("displbe.display.buffers.copy_frame", read_twice)
    async with world_on(screens, tmp_path, monkeypatch, limits=FAST) as world:
        operator = Operator(world)
        async with world.guest(1, spec(width=WIDTH, height=HEIGHT)) as guest, trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(operator.watch)
            for turn in range(turns):
                await shown(guest)
                if turn % 2:
                    before = operator.pictures
                    await until(lambda before=before: operator.pictures > before)  # type: ignore[misc]
                await begin_again(world, guest)
            operator.ended = True
        assert world.hypervisor.ledger == Ledger()
    assert operator.pictures >= turns // 2
    assert operator.refused <= {
        "the guest is not connected",
        "no picture: the connector is off",
        "no picture: no such framebuffer",
        "no picture: the guest has just taken the framebuffer back",
    }


@pytest.mark.slow
async def test_screenshots_of_a_guest_that_reconnects_within_its_limits(tmp_path: Path) -> None:
    """The attack as it was found: default limits, and displbectl. It ended the daemon within 17 s."""
    async with World.running(tmp_path) as world, world.guest(1, spec(width=WIDTH, height=HEIGHT)) as guest:
        ended = trio.Event()
        taken: list[float] = []

        async def watch() -> None:
            while not ended.is_set():
                with contextlib.suppress(AssertionError):  # there was no picture at that moment
                    await ctl(world, "screenshot", "1", str(tmp_path / "shot.png"))
                    taken.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            nursery.start_soon(watch)
            until_then = trio.current_time() + 40
            while trio.current_time() < until_then:
                await shown(guest)
                await trio.sleep(0.2)
                await begin_again(world, guest)
            ended.set()
        assert taken


async def test_a_destroyed_buffer_is_answered_when_its_picture_is_taken(
    screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest uses its pages again after the response: they must not be mapped any more then. Other requests do not wait."""
    copying, resumed = held_copies(monkeypatch)
    async with (
        world_on(screens, tmp_path, monkeypatch) as world,
        world.guest(1, spec(), spec("DP-1")) as guest,
    ):
        dbuf, fb, buffer = await guest.display.create_framebuffer(64, 48)
        buffer.pixels[:] = b"\x01\x02\x03\0" * (64 * 48)
        await guest.display.show(0, fb, 64, 48)
        screen = world.device(1).service.connectors[0].screen
        pictures: list[bytes] = []

        async def take() -> None:
            _, picture = await screen.picture()
            pictures.append(content(picture, 0, 64 * 48 * 4))
            await trio.to_thread.run_sync(picture.close)

        destroyed = trio.Event()

        async def destroy() -> None:
            await guest.display.destroy_framebuffer(dbuf, fb, buffer)  # it asserts that nothing maps the pages
            destroyed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await trio.to_thread.run_sync(copying.wait, 10)
            nursery.start_soon(destroy)
            other = await guest.display.create_framebuffer(64, 48)
            await trio.sleep(0.2)
            assert not destroyed.is_set()
            resumed.set()
            with trio.fail_after(3):
                await destroyed.wait()
        assert pictures == [b"\x01\x02\x03\0" * (64 * 48)]
        await guest.display.destroy_framebuffer(*other)


async def test_pictures_of_be_alloc_buffers_that_go(
    screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend's own memory, which a guest draws into, is freed when the last picture of it is taken."""
    monkeypatch.setattr("displbe.display.buffers.copy_frame", read_twice)
    guests = {"painter": GuestSettings(be_alloc=True)}
    async with (
        world_on(screens, tmp_path, monkeypatch, guests=guests, limits=FAST) as world,
        world.booted(1, spec(width=WIDTH, height=HEIGHT), name="painter") as guest,
    ):
        world.tools.write(f"{world.tools.front(1)}/be-alloc", "1")
        with trio.fail_after(30):
            await guest.display.connected.wait()
        operator = Operator(world)
        connector = guest.display.connectors[0]
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(operator.watch)
            for _ in range(12):
                buffer = BorrowedBuffer(guest.domain, WIDTH * HEIGHT * 4)
                await connector.order(DbufCreate(0, 1, WIDTH, HEIGHT, 32, buffer.size, REQ_ALLOC, buffer.directory, 0))
                await connector.order(FbAttach(0, 1, 2, WIDTH, HEIGHT, fourcc("XR24")))
                await connector.order(SetConfig(0, 2, 0, 0, WIDTH, HEIGHT, 32))
                before = operator.pictures
                await until(lambda before=before: operator.pictures > before)  # type: ignore[misc]
                await connector.order(DbufDestroy(0, 1))
                await buffer.free()
                assert "alloc_pages" not in world.held(1)
                assert "buffers" not in world.held(1)
            operator.ended = True
    assert operator.pictures >= 12
