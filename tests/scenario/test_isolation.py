"""One guest misbehaves, and another guest must not notice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from scenario.world import World, flip_on, spec, until
from structlog.testing import capture_logs

from displbe.sim.guest import Guest
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger

REQ_PROD = 0
RSP_PROD = 8
IN_CONS = 0


@asynccontextmanager
async def neighbours(world: World) -> AsyncIterator[tuple[Guest, list[float]]]:
    """Run a bad guest while a good one flips. At the end, each flip of the good guest must have been answered in time."""
    async with world.guest(2, spec("good")) as good, world.guest(1, spec("bad")) as bad, flip_on(good) as times:
        await until(lambda: len(times) > 2)
        already = len(times)
        yield bad, times
        await until(lambda: len(times) > already + 20)
        assert max(times) < 0.5
        assert good.display.history == [State.INIT_WAIT, State.CONNECTED]
        assert good.display.connectors[0]._next_event_id == len(good.display.connectors[0].flips_done)


async def shut_off_and_back(world: World, bad: Guest, logs: list[dict[str, object]]) -> None:
    """Wait until the device has gone to 5 and 6 and released everything, and the guest's driver has reconnected and works."""
    await until(lambda: bad.display.history.count(State.CONNECTED) == 2 and bad.display.connected.is_set())
    assert bad.display.history.index(State.CLOSING) < bad.display.history.index(State.CLOSED)
    lines = [line for line in logs if line["event"] == "device shut off"]
    assert [(line["domid"], line["log_level"]) for line in lines] == [(1, "error")]
    assert "impossible" in str(lines[0]["reason"])
    async with flip_on(bad) as times:
        await until(lambda: len(times) > 2)


@pytest.mark.parametrize("value", [33, 1000, 0x8000_0000, 0xFFFF_FFFF])
async def test_an_impossible_request_index(world: World, value: int) -> None:
    with capture_logs() as logs:
        async with neighbours(world) as (bad, _):
            connector = bad.display.connectors[0]
            _, fb, _ = await bad.display.create_framebuffer(64, 48)
            await bad.display.show(0, fb, 64, 48)
            assert world.hypervisor.ledger.buffers == 3
            connector.ring_page.store(REQ_PROD, connector.ring._req_prod + value & 0xFFFF_FFFF)
            connector.channel.notify()
            await shut_off_and_back(world, bad, logs)  # type: ignore[arg-type]
            assert world.hypervisor.ledger.buffers == 2
            assert world.held(1) == {"connectors": 1}


async def test_an_impossible_event_index(world: World) -> None:
    with capture_logs() as logs:
        async with neighbours(world) as (bad, _):
            connector = bad.display.connectors[0]
            _, fb, _ = await bad.display.create_framebuffer(64, 48)
            await bad.display.show(0, fb, 64, 48)
            connector.event_page.store(IN_CONS, 5)
            with trio.move_on_after(1):
                await connector.flip(fb)
            await shut_off_and_back(world, bad, logs)  # type: ignore[arg-type]


async def test_a_shut_off_device_stays_so_until_its_guest_moves(world: World) -> None:
    async with neighbours(world) as (bad, _):
        display = bad.display

        async def ignore(state: State | None) -> None:
            await trio.lowlevel.checkpoint()

        display._on_backend = ignore  # type: ignore[method-assign]
        connector = display.connectors[0]
        connector.ring_page.store(REQ_PROD, 0x1000)
        connector.channel.notify()
        await until(lambda: world.state(1) is State.CLOSED)
        for _ in range(5):
            connector.channel.notify()
            await trio.sleep(0.05)
        assert world.state(1) is State.CLOSED
        assert "impossible request index" in (world.error(1) or "")


@pytest.mark.headless
async def test_a_storm_of_notifications_and_of_bad_requests(world: World) -> None:
    async with neighbours(world) as (bad, times):
        connector = bad.display.connectors[0]
        connector.channel.fired = lambda: False
        with trio.move_on_after(0.5):
            while True:
                while connector.ring.take() is not None:
                    pass
                for _ in range(20):
                    try:
                        connector.ring.put(b"\0\0\x77" + bytes(61))
                    except BufferError:
                        break
                connector.channel.notify()
                await trio.lowlevel.checkpoint()
        assert max(times) < 0.3
        connector.channel.fired = connector._on_response
        connector._on_response()


@pytest.mark.headless
@pytest.mark.parametrize("slow", [False, True])
async def test_a_bug_ends_only_its_device(world: World, monkeypatch: pytest.MonkeyPatch, slow: bool) -> None:
    """An exception while a guest's request is served, at once or by the connector's task, ends that device only."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a mistake")

    with capture_logs() as logs:
        async with neighbours(world) as (bad, _):
            connector = bad.display.connectors[0]
            _, fb, _ = await bad.display.create_framebuffer(64, 48)
            await bad.display.show(0, fb, 64, 48)
            with monkeypatch.context() as patch:
                patch.setattr(world.output("bad"), "enable" if slow else "flip", fail)
                with trio.move_on_after(0.5):
                    await (bad.display.show(0, fb, 64, 48) if slow else connector.flip(fb))
            await until(lambda: bad.display.history.count(State.CONNECTED) == 2 and bad.display.connected.is_set())
            assert world.held(1) == {"connectors": 1}
            async with flip_on(bad) as times:
                await until(lambda: len(times) > 2)
    told = {line["event"] for line in logs if line["log_level"] == "error"}
    assert told == ({"device failed; it is started anew"} if slow else {"request failed", "device shut off"})


async def test_a_request_whose_notification_was_lost(world: World) -> None:
    """The rescue poll finds the request, serves it, counts and logs it: no notification should ever be lost."""
    with capture_logs() as logs:
        async with neighbours(world) as (bad, _):
            connector = bad.display.connectors[0]
            await bad.display.create_framebuffer(64, 48)
            connector.ring.put(bytes(64))
            await until(lambda: connector.ring_page.load(RSP_PROD) == connector.ring._req_prod)
            await until(lambda: 0 in connector._answers)
            await bad.display.create_framebuffer(64, 48)
    assert [line["rescued"] for line in logs if line["event"] == "a request waited without a notification"] == [1]


async def test_a_guest_that_maps_and_unmaps(world: World) -> None:
    async with neighbours(world) as (bad, _):
        for _ in range(5):
            dbuf, fb, buffer = await bad.display.create_framebuffer(1920, 1080)
            await bad.display.destroy_framebuffer(dbuf, fb, buffer)
        assert world.hypervisor.ledger == Ledger(ports=4, pages=4, buffers=2, buffer_pages=6)
