"""Table D: the ends of buffers, framebuffers, flips and guests."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgspec
import pytest
import trio
from hostile.rows import row
from hostile.stage import BAD, EVENTS, Stage, attach, config, create, forked, raw_buffer, status
from scenario.world import spec, until

from displbe.ops.control import CommandError
from displbe.ops.control import Request as OpsRequest
from displbe.sim.guest import DisplayBuffer, FrontConnector, Frontend, Guest
from displbe.sinks.drm.output import DrmOutput
from displbe.sinks.frame_copy import copy_frame
from displbe.wire.displif import DbufDestroy, FbDetach, PageFlip, Request, SetConfig, encode_request
from displbe.wire.errors import Errno
from displbe.wire.xenbus import State

COOKIE, FB, FB2 = 0x1000, 0x2000, 0x2040
OFF = SetConfig(0, 0, 0, 0, 0, 0, 0)


async def showing(guest: Guest, index: int = 0) -> DisplayBuffer:
    """Create a buffer with two framebuffers, and show the first."""
    first = guest.display.connectors[0]
    buffer = raw_buffer(guest)
    for request in (create(buffer), attach(FB), attach(FB2)):
        assert await status(first, request) == 0
    assert await status(guest.display.connectors[index], config(FB)) == 0
    return buffer


def _shown(stage: Stage) -> object:
    """Return what the bad guest's output shows."""
    output = stage.world.daemon.sink.claimed("bad")
    return output._lit if isinstance(output, DrmOutput) else stage.world.output("bad")._shown


async def at_once(connector: FrontConnector, *requests: Request) -> list[int]:
    """Send requests before the daemon reads the first of them. Return their statuses."""
    numbers = []
    for request in requests:
        number = connector._next_id & 0xFFFF
        connector._next_id += 1
        connector.ring.put(number.to_bytes(2, "little") + encode_request(request)[2:])
        numbers.append(number)
    connector.channel.notify()
    await until(lambda: all(number in connector._answers for number in numbers))
    return [connector._answers.pop(number).status for number in numbers]


@row(
    "DBUF_DESTROY while the buffer has framebuffers: one is shown, one has a flip under way",
    "0: displbe detaches the framebuffers first; then nothing maps the pages",
)
async def test_d1_destroy_with_framebuffers(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = await showing(bad)
        assert await at_once(connector, PageFlip(0, FB2), DbufDestroy(0, COOKIE)) == [0, 0]
        buffer.free()
        held = dict(stage.held)
        held.pop("copy_pages", 0)  # on a card, a frame of displbe's covers the screen
        assert held == {"connectors": 1}
        await until(lambda: connector.flips_done == [FB2])
        assert await status(connector, PageFlip(0, FB)) == -Errno.ENOENT


@row(
    "DBUF_DESTROY, or the end of the connection, while an operator takes pictures of what is shown, again and again",
    "0 when nothing reads the pages any more; the operator gets the picture, or is told that there is none",
)
async def test_d1_destroyed_while_it_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*arguments: Any) -> None:
        copy_frame(*arguments)
        time.sleep(0.01)
        copy_frame(*arguments)

    monkeypatch.setattr("displbe.display.buffers.copy_frame", slow)
    screenshot = stage.world.daemon.commands.table()["screenshot"]
    pictures, ended = 0, False

    async def watch() -> None:
        nonlocal pictures
        while not ended:
            with contextlib.suppress(CommandError):
                answer = await screenshot(OpsRequest(1, "screenshot", str(BAD)))
                assert answer.held is not None
                async with answer.held:
                    pictures += 1
            await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(watch)
        for _ in range(2):
            async with stage.bad() as bad:  # its end asserts that nothing maps its pages
                for _ in range(10):
                    buffer = await showing(bad)
                    before = pictures
                    await until(lambda before=before: pictures > before)  # type: ignore[misc]
                    assert await status(bad.display.connectors[0], DbufDestroy(0, COOKIE)) == 0
                    buffer.free()  # it asserts the same
                await showing(bad)
        ended = True


@row("DBUF_DESTROY and FB_DETACH of something that does not exist, or for the second time", "ENOENT")
async def test_d2_destroyed_twice(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = await showing(bad)
        for request in (FbDetach(0, FB), FbDetach(0, FB2), DbufDestroy(0, COOKIE)):
            assert await at_once(connector, request, request) == [0, -Errno.ENOENT]
        for cookie in (0, 1, (1 << 64) - 1):
            assert await status(connector, FbDetach(0, cookie)) == -Errno.ENOENT
            assert await status(connector, DbufDestroy(0, cookie)) == -Errno.ENOENT
        buffer.free()


@row(
    "FB_DETACH of the framebuffer that is shown, and of one with a flip under way",
    "0; the picture stays, the flip gets its event; the connector stays on and can flip",
)
async def test_d3_detach_what_is_shown(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = await showing(bad)
        buffer.pixels[:] = b"\0\xff\0\0" * (64 * 48)
        assert await at_once(connector, PageFlip(0, FB2), FbDetach(0, FB2), FbDetach(0, FB)) == [0, 0, 0]
        await until(lambda: connector.flips_done == [FB2])
        assert await status(connector, DbufDestroy(0, COOKIE)) == 0
        buffer.pixels[:] = b"\0\0\xff\0" * (64 * 48)
        assert stage.shows("bad", 0, 255, 0)
        buffer.free()
        other = raw_buffer(bad)
        assert await status(connector, create(other)) == 0
        assert await status(connector, attach(FB)) == 0
        assert await status(connector, PageFlip(0, FB)) == 0
        await until(lambda: connector.flips_done == [FB2, FB])


@row("FB_DETACH on connector 0 while connector 1 waits to show that framebuffer", "the waiting SET_CONFIG gets ENOENT")
async def test_d3_detach_what_is_about_to_be_shown(stage: Stage) -> None:
    async with stage.bad(spec("bad"), spec("worse")) as bad:
        first, second = bad.display.connectors
        buffer = await showing(bad)
        for _ in range(8):
            assert await status(second, config(FB)) == 0
        answers = []

        async def show() -> None:
            answers.append(await status(second, config(FB2)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(show)
            await trio.sleep(0.1)
            assert not answers, "the ninth mode change waits"
            assert await status(first, DbufDestroy(0, COOKIE)) == 0
            buffer.free()
        assert answers == [-Errno.ENOENT]


@row(
    "PG_FLIP to a framebuffer that never existed, is detached, or belongs to another device of the guest",
    "ENOENT, and no event",
)
async def test_d4_flip_to_nothing(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        assert await status(connector, FbDetach(0, FB2)) == 0
        tools = stage.world.tools
        tools.add_display(BAD, [spec("third")], number=1)
        await tools.wait_state(tools.back(BAD, 1), State.INIT_WAIT)
        other = Frontend(bad, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.run)
            with trio.fail_after(30):
                await other.connected.wait()
            buffer = raw_buffer(bad)
            assert await status(other.connectors[0], create(buffer, 0x9000)) == 0
            assert await status(other.connectors[0], attach(0x9040, 0x9000)) == 0
            for cookie in (0, 1, FB2, COOKIE, 0x9000, 0x9040):
                assert await status(connector, PageFlip(0, cookie)) == -Errno.ENOENT
            await tools.remove_display(BAD, 1)
            nursery.cancel_scope.cancel()
        await trio.sleep(0.02)
        assert connector.event_page.load(EVENTS) == 0


@row("a second and a third PG_FLIP while the first is under way", "EBUSY; one event, for the first flip")
async def test_d5_second_flip(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        expected = []
        for _ in range(10):
            answers = await at_once(connector, PageFlip(0, FB2), PageFlip(0, FB), PageFlip(0, FB2))
            assert answers == [0, -Errno.EBUSY, -Errno.EBUSY]
            expected.append(FB2)
            await until(lambda: len(connector.flips_done) == len(expected))
        assert connector.flips_done == expected
        assert connector._next_event_id == 10


@row("PG_FLIP before SET_CONFIG, or after the guest has switched the connector off", "EINVAL")
async def test_d6_flip_while_off(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = raw_buffer(bad)
        assert await at_once(connector, create(buffer), attach(FB), PageFlip(0, FB)) == [0, 0, -Errno.EINVAL]
        answers = await at_once(connector, config(FB), OFF, PageFlip(0, FB))
        assert answers == [0, 0, -Errno.EINVAL]
        assert connector.event_page.load(EVENTS) == 0


@row(
    "the cookie of a framebuffer is used again at once, while the flip to the old framebuffer is under way",
    "one event for each accepted flip, in order",
)
async def test_d7_cookie_used_again(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        for count in range(1, 20):
            answers = await at_once(
                connector, PageFlip(0, FB2), FbDetach(0, FB2), attach(FB2), PageFlip(0, FB2), PageFlip(0, FB2)
            )
            assert answers == [0, 0, 0, 0, -Errno.EBUSY]
            await until(lambda: len(connector.flips_done) == 2 * count)  # noqa: B023 - waited for
        assert connector._next_event_id == 38


@row(
    "the guest closes the device, or its nodes are removed, while a flip is under way",
    "displbe releases everything at once, and writes no event into pages that the guest has back",
)
async def test_d8_closed_while_flipping(stage: Stage) -> None:
    async with stage.bad() as bad:
        for _ in range(2):
            connector = bad.display.connectors[0]
            await showing(bad)
            page = connector.event_page
            async with trio.open_nursery() as nursery:
                nursery.start_soon(at_once, connector, PageFlip(0, FB2))
                await bad.display.close()
                nursery.cancel_scope.cancel()
            page.write(0, bytes(4096))
            await trio.sleep(0.02)
            assert page.copy(0, 4096) == bytes(4096)
            assert stage.ledger == stage.quiet
            await bad.display._switch(State.INITIALISING)
            bad.display._changed.set()
            with trio.fail_after(30):
                await bad.display.connected.wait()


@row(
    "SET_CONFIG, again as soon as the response comes",
    "eight at once, then two a second; each response comes within Linux's 3 s",
)
async def test_d9_mode_storm(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        begun, times = time.monotonic(), []
        for count in range(9):
            then = time.monotonic()
            assert await status(connector, config(FB, width=64 - count % 2)) == 0
            times.append(time.monotonic() - then)
        assert 0.4 < time.monotonic() - begun < 3
        assert max(times) < 3
        await stage.still_flips(20)


@row(
    "the guest switches the connector on and off, or flips between framebuffers of two sizes, again as soon as the response comes",
    "the same",
)
async def test_d9_switching_storm(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        assert await status(connector, attach(0x2080, width=32)) == 0
        storm: list[Request] = [OFF, config(FB), PageFlip(0, 0x2080), PageFlip(0, FB)]
        begun = time.monotonic()
        for request in storm * 2:
            assert await status(connector, request) == 0
        assert 0.4 < time.monotonic() - begun < 3
        await stage.still_flips(20)


@row(
    "SET_CONFIG with size 0, outside the framebuffer, or with cookie 0 and a size",
    "EINVAL; the picture does not change",
)
async def test_d10_impossible_configuration(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await showing(bad)
        shown = _shown(stage)
        huge = 0xFFFFFFFF
        for x, y, width, height in (
            (0, 0, 0, 0),
            (0, 0, 64, 0),
            (0, 0, 0, 48),
            (64, 0, 1, 1),
            (0, 48, 1, 1),
            (huge, 0, 2, 48),
            (0, huge, 64, 2),
            (0, 0, huge, huge),
            (1, 1, huge, huge),
        ):
            assert await status(connector, config(FB, x, y, width, height)) == -Errno.EINVAL
        for change in ({"x": 1}, {"y": 1}, {"width": 64}, {"height": 48}, {"bpp": 32}):
            assert await status(connector, msgspec.structs.replace(OFF, **change)) == -Errno.EINVAL
        assert await status(connector, config(0xBAD)) == -Errno.ENOENT
        assert _shown(stage) is shown
        assert await status(connector, PageFlip(0, FB2)) == 0


@row(
    "another vCPU draws all the time into the frame that is shown",
    "only the guest's own picture is affected; nothing waits for it",
)
async def test_d11_drawing_while_shown(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = await showing(bad)
        colours = [bytes((n, n, n, n)) * (64 * 48) for n in (0, 0x55, 0xFF)]

        def draw() -> None:
            for colour in colours:
                buffer.pixels[:] = colour

        with forked(draw):
            for count in range(50):
                await connector.flip((FB, FB2)[count % 2])
                assert stage.shows("bad")


@row(
    "the domain is destroyed while it flips, creates and changes modes",
    "displbe releases everything within a second after the toolstack ends the device",
)
async def test_d12_destroyed(stage: Stage) -> None:
    for delay in (0.0, 0.003, 0.02):
        with trio.CancelScope() as scope:
            async with stage.world.guest(BAD, spec("bad")) as bad:
                connector = bad.display.connectors[0]
                await showing(bad)
                other = raw_buffer(bad)
                requests: list[Request] = [PageFlip(0, FB2), create(other, 1), config(FB, width=63), PageFlip(0, FB2)]
                for number, request in enumerate([*requests, DbufDestroy(0, COOKIE)]):
                    connector.ring.put((1000 + number).to_bytes(2, "little") + encode_request(request)[2:])
                connector.channel.notify()
                await trio.sleep(delay)
                scope.cancel()
                begun = time.monotonic()
                await trio.lowlevel.checkpoint()
        await stage.gone()
        assert time.monotonic() - begun < 1


@row(
    "the guest stops: no vCPU runs, it reads no event, no state changes",
    "the picture stays; displbe does no work for the guest, and nothing else waits for it",
)
async def test_d12_paused(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = await showing(bad)
        buffer.pixels[:] = b"\xff\0\0\0" * (64 * 48)
        connector.channel.fired = connector.event_channel.fired = lambda: False
        connector.ring.put(encode_request(PageFlip(0, FB2)))
        connector.channel.notify()
        await stage.still_flips(50)
        assert stage.shows("bad", 0, 0, 255)
