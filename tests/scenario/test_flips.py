"""Page flips: each accepted flip has one event, and the numbers of the events have no gap, whatever else happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from scenario.world import World, exchange, flip_on, spec, until

from displbe.sim.guest import FrontConnector, Guest
from displbe.sinks.base import SinkError
from displbe.wire import displif
from displbe.wire.displif import PageFlip, decode_response
from displbe.wire.errors import Errno
from displbe.wire.ring import EVENT_SLOTS

IN_PROD = 4


@asynccontextmanager
async def showing(world: World) -> AsyncIterator[tuple[Guest, FrontConnector, list[int]]]:
    """Run a guest that shows the first of two framebuffers."""
    async with world.guest(1) as guest:
        buffers = [await guest.display.create_framebuffer(64, 48) for _ in range(2)]
        fbs = [fb for _, fb, _ in buffers]
        await guest.display.show(0, fbs[0], 64, 48)
        yield guest, guest.display.connectors[0], fbs


async def flip(connector: FrontConnector, fb: int) -> int:
    """Request a flip; return the response's status."""
    return decode_response(await exchange(connector, PageFlip(0, fb))).status


async def test_two_hundred_flips(world: World) -> None:
    async with showing(world) as (_, connector, fbs):
        for count in range(200):
            await connector.flip(fbs[count % 2])
        assert connector.flips_done == fbs * 100
        assert connector._next_event_id == 200


async def test_event_numbers_begin_at_0_for_each_connection(world: World) -> None:
    for _ in range(2):
        async with showing(world) as (guest, connector, fbs):
            for count in range(70):
                await connector.flip(fbs[count % 2])
            await guest.display.close()


async def test_the_shown_framebuffer_may_be_flipped_to(world: World) -> None:
    async with showing(world) as (_, connector, fbs):
        for _ in range(3):
            await connector.flip(fbs[0])
        assert connector.flips_done == [fbs[0]] * 3


async def test_a_second_flip_while_one_is_under_way(tmp_path: Path) -> None:
    async with World.running(tmp_path, refresh=5) as world, showing(world) as (_, connector, fbs):
        requests = [PageFlip(0, fb) for fb in (fbs[1], fbs[0], fbs[1])]
        answers: list[int] = []

        async def ask(request: PageFlip) -> None:
            answers.append((await connector.ask(request)).status)

        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(ask, request)
        assert sorted(answers) == [-Errno.EBUSY, -Errno.EBUSY, 0]
        await until(lambda: connector.flips_done)
        await trio.sleep(0.25)
        assert connector._next_event_id == 1
        await connector.flip(fbs[0])
        assert connector._next_event_id == 2


async def test_a_guest_that_does_not_read_its_events(world: World) -> None:
    """The page holds 63 events. When it is full, flips are refused until there is room; no event is lost or sent twice."""
    async with showing(world) as (_, connector, fbs):
        connector.event_channel.fired = lambda: False
        for count in range(EVENT_SLOTS):
            assert await flip(connector, fbs[count % 2]) == 0
            await until(lambda: connector.event_page.load(IN_PROD) == count + 1)  # noqa: B023 - waited for
        assert await flip(connector, fbs[1]) == 0
        await trio.sleep(0.05)
        assert connector.event_page.load(IN_PROD) == EVENT_SLOTS
        for _ in range(5):
            assert await flip(connector, fbs[0]) == -Errno.EBUSY
        assert connector.event_page.load(IN_PROD) == EVENT_SLOTS
        status = await world.daemon.commands.status()
        assert status.guests[0].devices[0].connectors[0].late_events == 1
        # The guest reads again, and gets the waiting events in order.
        connector.event_channel.fired = connector._on_event
        connector._on_event()
        await until(lambda: connector._next_event_id == EVENT_SLOTS + 1)
        assert connector.flips_done == [fbs[count % 2] for count in range(EVENT_SLOTS + 1)]
        for count in range(EVENT_SLOTS + 1):
            await connector.flip(fbs[count % 2])
        assert len(connector.flips_done) == connector._next_event_id == 2 * EVENT_SLOTS + 2


@pytest.mark.headless
async def test_one_connectors_full_event_page_does_not_affect_another(world: World) -> None:
    async with world.guest(1, spec("left"), spec("right")) as guest:
        left, right = guest.display.connectors
        _, fb, _ = await guest.display.create_framebuffer(64, 48)
        for index in range(2):
            await guest.display.show(index, fb, 64, 48)
        left.event_channel.fired = lambda: False
        for _ in range(EVENT_SLOTS + 1):
            await until(lambda: not world.output("left")._next)
            await flip(left, fb)
        assert await flip(left, fb) == -Errno.EBUSY
        for _ in range(100):
            await right.flip(fb)


async def test_switching_off_completes_a_flip(tmp_path: Path) -> None:
    async with World.running(tmp_path, refresh=2) as world, showing(world) as (guest, connector, fbs):
        assert await flip(connector, fbs[1]) == 0
        await guest.display.hide(0)
        await until(lambda: connector.flips_done == [fbs[1]], timeout=1)
        await trio.sleep(0.6)
        assert world.output()._shown is None, "the screen is off, and stays off"
        assert connector._next_event_id == 1


async def test_a_new_configuration_comes_after_a_flip_under_way(tmp_path: Path) -> None:
    async with World.running(tmp_path, refresh=2) as world, showing(world) as (guest, connector, fbs):
        assert await flip(connector, fbs[1]) == 0
        await guest.display.show(0, fbs[0], 64, 48)
        shown = world.output()._shown
        await trio.sleep(0.6)
        assert connector.flips_done == [fbs[1]]
        assert world.output()._shown is shown, "the last configuration is shown"


async def test_a_framebuffer_that_goes_while_it_is_flipped_to(tmp_path: Path) -> None:
    async with World.running(tmp_path, refresh=2) as world, showing(world) as (guest, connector, fbs):
        assert await flip(connector, fbs[1]) == 0
        await connector.order(displif.FbDetach(0, fbs[1]))
        await until(lambda: connector.flips_done == [fbs[1]], timeout=1)
        assert await flip(connector, fbs[1]) == -Errno.ENOENT
        await guest.display.show(0, fbs[0], 64, 48)
        await connector.flip(fbs[0])


@pytest.mark.headless
async def test_a_shown_framebuffer_may_be_detached_and_followed_by_another(world: World) -> None:
    """The connector stays on when the guest detaches the framebuffer on it, as Linux may after a failed flip (xen_drm_front_kms.c)."""
    async with showing(world) as (guest, connector, fbs):
        await connector.order(displif.FbDetach(0, fbs[0]))
        assert world.output().picture() is not None, "the picture stays"
        await connector.flip(fbs[1])
        assert world.output()._shown is not None
        await guest.display.hide(0)
        assert await flip(connector, fbs[1]) == -Errno.EINVAL


@pytest.mark.headless
@pytest.mark.parametrize(("width", "height", "format"), [(128, 48, "XR24"), (64, 48, "RG16"), (32, 24, "XR24")])
async def test_a_flip_to_another_shape(world: World, width: int, height: int, format: str) -> None:
    """A flip may go to a framebuffer of another size or format: Linux sends such flips within a mode (display_update)."""
    async with showing(world) as (guest, connector, fbs):
        _, fb, buffer = await guest.display.create_framebuffer(width, height, format)
        buffer.pixels[:] = b"\xff" * len(buffer.pixels)
        for _ in range(2):
            await connector.flip(fb)
            picture = world.output().picture()
            assert picture is not None
            assert (picture.size, picture.getcolors()) == (
                (min(width, 64), min(height, 48)),
                [(min(width, 64) * min(height, 48), (255, 255, 255))],
            )
            await connector.flip(fbs[1])
        assert connector.flips_done == [fb, fbs[1]] * 2
        assert connector._next_event_id == 4


@pytest.mark.headless
async def test_a_flip_to_another_shape_that_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with showing(world) as (guest, connector, fbs):
        _, small, _ = await guest.display.create_framebuffer(32, 24)
        await connector.order(displif.SetConfig(0, fbs[0], 40, 0, 24, 48, 32))
        assert await flip(connector, small) == -Errno.EINVAL, "the part that is shown is not in it"
        await connector.flip(fbs[1])
        await connector.order(displif.SetConfig(0, fbs[0], 0, 0, 64, 48, 32))

        async def fail(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise SinkError(Errno.EIO, "no")

        with monkeypatch.context() as patch:
            patch.setattr(world.output(), "enable", fail)
            assert await flip(connector, small) == -Errno.EIO
        await connector.flip(fbs[1])
        await connector.flip(small)
        assert connector.flips_done == [fbs[1], fbs[1], small]


async def test_a_cookie_is_used_again_at_once(world: World) -> None:
    """A cookie may be used again at once: in Linux, cookies are pointers, and the allocator soon returns the same pointer again."""
    async with world.guest(1) as guest:
        connector = guest.display.connectors[0]
        for _ in range(5):
            dbuf, fb, buffer = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(0, fb, 64, 48)
            await connector.flip(fb)
            await guest.display.hide(0)
            await guest.display.destroy_framebuffer(dbuf, fb, buffer)
            guest.display._next_cookie -= 128
        assert connector.flips_done == [fb] * 5


async def test_flips_go_on_without_xenstore(world: World) -> None:
    async with world.guest(1) as guest, flip_on(guest) as times:
        for _ in range(3):
            before = len(times)
            world.xen.server.disconnect(0)
            await until(lambda: len(times) >= before + 50)  # noqa: B023 - waited for
        assert max(times) < 1


async def test_states_are_seen_after_xenstore_was_lost(world: World) -> None:
    async with world.guest(1) as guest:
        async with flip_on(guest) as times:
            await until(lambda: len(times) > 5)
            world.xen.server.disconnect(0)
            await until(lambda: len(times) > 10)
        world.xen.server.disconnect(0)
        with trio.fail_after(3):
            await guest.display.close()
        await until(lambda: world.state(1) == 2)


async def test_new_guests_are_seen_after_xenstore_was_lost(world: World) -> None:
    for domid in (1, 2):
        await world.hypervisor.store.read("/")
        world.xen.server.disconnect(0)
        async with world.guest(domid) as guest, flip_on(guest) as times:
            await until(lambda: times)
