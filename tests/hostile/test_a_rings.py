"""Table A: rings and event channels."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hostile.rows import row
from hostile.stage import BAD, EVENTS, GOOD, Stage, attach, config, create, forked, page_of, raw_buffer, status
from scenario.cards import Screens
from scenario.world import spec, until

from displbe.backend.quota import REQUEST_BURST, Limits
from displbe.sim.guest import FrontConnector, Guest
from displbe.sim.hypervisor import SimChannel
from displbe.wire.displif import (
    DbufDestroy,
    FbDetach,
    PageFlip,
    Response,
    UnknownRequest,
    decode_response,
    encode_request,
)
from displbe.wire.errors import Errno
from displbe.wire.ring import EVENT_SLOTS, REQUEST_SLOTS, BackControlRing

REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT, SLOTS = 0, 4, 8, 12, 64
IN_CONS = 0
NOTHING = UnknownRequest(0, 0x55)
UNHURRIED = Limits(requests_per_second=1e9)


async def one_flip(guest: Guest) -> int:
    """Show a framebuffer and flip to it. Return its cookie."""
    _, fb, _ = await guest.display.create_framebuffer(64, 48)
    await guest.display.show(0, fb, 64, 48)
    await guest.display.connectors[0].flip(fb)
    return fb


@contextmanager
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Response]]:
    """The responses that the daemon has written, except those to the good guest."""
    found: list[Response] = []
    respond = BackControlRing.respond

    def noted(self: BackControlRing, response: bytes) -> bool:
        answer = decode_response(response)
        if answer.operation != PageFlip.operation or answer.status:
            found.append(answer)
        return respond(self, response)

    monkeypatch.setattr(BackControlRing, "respond", noted)
    yield found
    monkeypatch.setattr(BackControlRing, "respond", respond)


@row("`req_prod` jumps more than 32 ahead, or goes back", "shut off")
async def test_a1_impossible_request_index(stage: Stage) -> None:
    async with stage.bad() as bad:
        for distance in (33, 1 << 31, -1, 0xFFFFFFFF):
            connector = bad.display.connectors[0]
            assert await status(connector, NOTHING) == -Errno.EOPNOTSUPP
            connector.ring_page.store(REQ_PROD, connector.ring._req_prod + distance & 0xFFFFFFFF)
            connector.channel.notify()
            await stage.shut_off(bad)


@row("another vCPU rewrites slots while displbe parses them", "displbe answers one consistent copy of each request")
async def test_a2_slot_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screens: Screens) -> None:
    # The statuses of each operation with these fields, or with cookies 0 when a copy still has the bytes of an old response.
    expected = {
        0x10: {-Errno.EINVAL},
        0x11: {-Errno.ENOENT},
        0x12: {-Errno.ENOENT, -Errno.EINVAL},
        0x14: {-Errno.ENOENT, 0},
        0x15: {-Errno.ENOENT},
        0xEE: {-Errno.EOPNOTSUPP},
    }
    async with Stage.on(screens, tmp_path, monkeypatch, limits=UNHURRIED) as stage, stage.bad() as bad:
        variants = [
            encode_request(request)
            for request in (
                PageFlip(0x1515, 0x15151515),
                UnknownRequest(0xEEEE, 0xEE),
                create(raw_buffer(bad), 0x1010, id=0x1010, buffer_sz=0),
                attach(0x1212),
                config(0x1414),
                DbufDestroy(0x1111, 0x11),
            )
        ]
        connector = bad.display.connectors[0]
        slots = page_of(bad, connector.req_ref)[SLOTS : SLOTS + 64 * REQUEST_SLOTS]
        pages = [variant * REQUEST_SLOTS for variant in variants]
        produced = connector.ring._req_prod
        connector.channel.fired = lambda: False

        def rewrite() -> None:
            for content in pages:
                slots[:] = content

        with forked(rewrite), answers(monkeypatch) as found:
            with trio.fail_after(60):
                while len(found) <= 500 or len({answer.operation for answer in found}) <= 3:
                    produced += REQUEST_SLOTS // 2
                    connector.ring_page.store(REQ_PROD, produced & 0xFFFFFFFF)
                    connector.channel.notify()
                    await until(lambda: connector.ring_page.load(RSP_PROD) == produced & 0xFFFFFFFF)  # noqa: B023
        for answer in found:
            assert answer.status in expected.get(answer.operation, {-Errno.EOPNOTSUPP})
        assert stage.held == {"connectors": 1}


@row("`req_event` and `rsp_event` hold garbage", "each request gets a response, with at most one notification each")
async def test_a3_garbage_in_event_indices(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(3)
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        notified = 0
        notify = SimChannel.notify

        def count(self: SimChannel) -> None:
            nonlocal notified
            notified += self._domain.domid == 0 and self._domain.peers.get(self.port) == (
                bad.domain,
                connector.req_port,
            )
            notify(self)

        monkeypatch.setattr(SimChannel, "notify", count)
        connector.channel.fired = lambda: False
        for number in range(300):
            connector.ring.put(encode_request(UnknownRequest(number, 0x55)))
            connector.ring_page.store(REQ_EVENT, chance.getrandbits(32))
            connector.ring_page.store(
                RSP_EVENT, chance.choice((number, number + 1, number + 2, chance.getrandbits(32)))
            )
            connector.channel.notify()
            await until(lambda: connector.ring_page.load(RSP_PROD) == number + 1)  # noqa: B023 - waited for
            answer = decode_response(connector.ring.take() or b"")
            assert (answer.id, answer.status) == (number, -Errno.EOPNOTSUPP)
        assert 0 < notified <= 300


@row(
    "the guest overwrites `rsp_prod` and the event page's `in_prod`",
    "displbe never reads them: the next response and event are in the right slots",
)
async def test_a4_our_indices_overwritten(stage: Stage) -> None:
    async with stage.bad() as bad:
        fb = await one_flip(bad)
        connector = bad.display.connectors[0]
        fired, connector.channel.fired = connector.channel.fired, lambda: False
        seen, connector.event_channel.fired = connector.event_channel.fired, lambda: False
        for garbage in (0, 5, 0xFFFFFFFF, 1 << 31):
            before = connector.ring._req_prod
            connector.ring_page.store(RSP_PROD, garbage)
            connector.event_page.store(EVENTS, garbage)
            connector.ring.put(encode_request(PageFlip(before & 0xFFFF, fb)))
            connector.channel.notify()
            done = connector._next_event_id
            await until(lambda: connector.ring_page.load(RSP_PROD) == before + 1)  # noqa: B023 - waited for
            await until(lambda: connector.event_page.load(EVENTS) == done + 1)  # noqa: B023 - waited for
            fired()
            seen()
            assert connector._answers.pop(before & 0xFFFF).status == 0
        assert connector.flips_done == [fb] * 5


@row("`in_cons` is ahead of `in_prod`, or far behind it", "shut off at the next event")
async def test_a5_impossible_event_index(stage: Stage) -> None:
    async with stage.bad() as bad:
        for value in (5, 1 << 31, -EVENT_SLOTS - 5):
            fb = await one_flip(bad)
            connector = bad.display.connectors[0]
            connector.event_page.store(IN_CONS, connector.event_page.load(EVENTS) + value & 0xFFFFFFFF)
            assert await status(connector, PageFlip(0, fb)) == 0
            await stage.shut_off(bad)


@row("`in_cons` never moves", "displbe writes 63 events and one waits; then PG_FLIP gets EBUSY until there is room")
async def test_a5_events_never_read(stage: Stage) -> None:
    async with stage.bad() as bad:
        fb = await one_flip(bad)
        connector = bad.display.connectors[0]
        await until(lambda: connector.event_page.load(IN_CONS) == 1)
        seen, connector.event_channel.fired = connector.event_channel.fired, lambda: False
        for count in range(EVENT_SLOTS):
            assert await status(connector, PageFlip(0, fb)) == 0
            await until(lambda: connector.event_page.load(EVENTS) == count + 2)  # noqa: B023 - waited for
        assert await status(connector, PageFlip(0, fb)) == 0
        await trio.sleep(0.02)
        assert await status(connector, PageFlip(0, fb)) == -Errno.EBUSY
        assert connector.event_page.load(EVENTS) == EVENT_SLOTS + 1
        seen()
        await until(lambda: connector.event_page.load(EVENTS) == EVENT_SLOTS + 2)
        seen()
        assert connector.flips_done == [fb] * (EVENT_SLOTS + 2)


@row(
    "notifications without requests, as fast as a vCPU can send them",
    "displbe re-arms the port later each time; other guests notice nothing",
)
async def test_a6_event_flood(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        calls = 0
        kicked = ours(stage, connector)
        fired = kicked.fired

        def count() -> bool:
            nonlocal calls
            calls += 1
            return fired()

        kicked.fired = count
        host = stage.world.hypervisor.domain
        with forked(lambda: host.raise_port(kicked.port)):
            await trio.sleep(0.5)
            await stage.still_flips(20)
        assert calls < 50
        with trio.fail_after(3):
            await one_flip(bad)


def ours(stage: Stage, connector: FrontConnector) -> SimChannel:
    """Return the daemon's end of a connector's request channel."""
    host, port = stage.world.hypervisor, connector._domain.peers[connector.req_port]
    assert port is not None
    channel = host.channels._channels[port[1]]
    assert isinstance(channel, SimChannel)
    return channel


@row(
    "the ring is always full of requests",
    "displbe serves a few requests, then the other rings; at most 2000 requests a second",
)
async def test_a7_request_flood(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        page = page_of(bad, connector.req_ref)
        connector.channel.fired = lambda: False
        page[SLOTS : SLOTS + 64 * REQUEST_SLOTS] = encode_request(NOTHING) * REQUEST_SLOTS
        host, (_, port) = stage.world.hypervisor.domain, bad.domain.peers[connector.req_port] or (None, 0)
        before, begun = connector.ring_page.load(RSP_PROD), time.monotonic()

        def fill() -> None:
            connector.ring_page.store(REQ_PROD, connector.ring_page.load(RSP_PROD) + REQUEST_SLOTS & 0xFFFFFFFF)
            host.raise_port(port)

        with forked(fill):
            await trio.sleep(0.5)
            await stage.still_flips(20)
        limits = stage.world.settings.limits
        most = limits.requests_per_second * (time.monotonic() - begun + REQUEST_BURST) + limits.requests_per_turn
        assert 500 < connector.ring_page.load(RSP_PROD) - before <= most


@row("eight requests at a time, or 32, with one notification each time", "served at once: not taken for a flood")
async def test_a7_full_turns(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        connector.channel.fired = lambda: False
        serving = ours(stage, connector).fired.__self__  # type: ignore[attr-defined]
        for count in (8, 32, 16, 24) * 5:
            for _ in range(count):
                connector.ring.put(encode_request(NOTHING))
            begun = time.monotonic()
            connector.channel.notify()
            await until(lambda: connector.ring_page.load(RSP_PROD) == connector.ring._req_prod)
            assert time.monotonic() - begun < 0.5
            while connector.ring.take() is not None:
                pass
            connector.ring.final_check()
        assert serving.rescued == 0


@row(
    "the guest closes its ends of the event channels while it is connected",
    "notifications have no effect; the device stays connected until the guest leaves",
)
async def test_a8_channels_closed(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        fb = await one_flip(bad)
        connector.event_channel.close()
        assert await status(connector, PageFlip(0, fb)) == 0
        await until(lambda: connector.event_page.load(EVENTS) == 2)
        connector.ring.put(encode_request(NOTHING))
        connector.channel.notify()
        connector.channel.close()
        await until(lambda: connector.ring_page.load(RSP_PROD) == connector.ring._req_prod)


@row("an event channel that does not exist, or that is offered to another domain", "refused")
async def test_a8_bind_to_a_closed_port(stage: Stage) -> None:
    await refuse_keys(stage, {"req-event-channel": lambda c: 1000}, "cannot bind event channel")
    await refuse_keys(stage, {"evt-event-channel": lambda c: c._domain.offer(GOOD)}, "cannot bind event channel")


async def refuse_keys(stage: Stage, changes: dict[str, object], *reasons: str) -> None:
    """Check that a guest is refused that publishes these keys instead of the right ones."""
    async with stage.world.booted(BAD, spec("bad")) as bad:
        publish = bad.display._switch

        async def forged(state: int) -> None:
            if state == 3:
                for key, value in changes.items():
                    assert callable(value)
                    text = b"%d" % value(bad.display.connectors[0])
                    await bad.hypervisor.store.write(f"device/vdispl/0/0/{key}", text)
            await publish(state)  # type: ignore[arg-type]

        bad.display._switch = forged  # type: ignore[method-assign]
        await stage.refused(*reasons)
        await stage.still_flips()
    await stage.gone()


@row("each of the 249 operations that do not exist", "EOPNOTSUPP")
async def test_a9_unknown_operations(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        for operation in (*range(0x10), *range(0x17, 0x100)):
            filler = bytes((operation,)) * 61
            assert await status(connector, b"\0\0" + bytes((operation,)) + filler) == -Errno.EOPNOTSUPP


@row("reserved bytes and unknown flags set", "ignored: Linux leaves old bytes there")
async def test_a10_reserved_bytes(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = raw_buffer(bad)
        request = bytearray(encode_request(create(buffer, flags=0xFFFFFFFE)))
        request[3:8] = b"\xff" * 5
        request[44:] = b"\xff" * 20
        assert await status(connector, bytes(request)) == 0
        destroy = bytearray(encode_request(DbufDestroy(0, 0x1000)))
        destroy[3:8] = b"\xff" * 5
        destroy[16:] = b"\xff" * 48
        assert await status(connector, bytes(destroy)) == 0
        buffer.free()


@row("32 requests with the same id", "32 responses, in order, each with that id")
async def test_a11_one_id(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        connector.channel.fired = lambda: False
        operations = [0x10 + number % 7 if number % 3 else 0x20 + number for number in range(REQUEST_SLOTS)]
        for operation in operations:
            connector.ring.put(b"\x34\x12" + bytes((operation,)) + bytes(61))
        connector.channel.notify()
        await until(lambda: connector.ring_page.load(RSP_PROD) == REQUEST_SLOTS)
        found = [decode_response(connector.ring.take() or b"") for _ in operations]
        assert [answer.operation for answer in found] == operations
        assert {answer.id for answer in found} == {0x1234}


@row("requests for buffers and framebuffers on connector 1", "EINVAL")
async def test_a12_wrong_connector(stage: Stage) -> None:
    async with stage.bad(spec("bad"), spec("worse")) as bad:
        first, second = bad.display.connectors
        buffer = raw_buffer(bad)
        requests = (create(buffer), attach(0x2000), FbDetach(0, 0x2000), DbufDestroy(0, 0x1000))
        for request in requests:
            assert await status(second, request) == -Errno.EINVAL
        for request in requests:
            assert await status(first, request) == 0
        buffer.free()


@row("the same page for both rings or for two connectors; the same port twice", "refused")
async def test_a13_shared_twice(stage: Stage) -> None:
    await refuse_keys(stage, {"evt-ring-ref": lambda c: c.req_ref}, "twice")
    await refuse_keys(stage, {"evt-event-channel": lambda c: c.req_port}, "twice")
    async with stage.world.booted(BAD, spec("bad"), spec("worse")) as bad:
        switch = bad.display._switch

        async def forged(state: int) -> None:
            if state == 3:
                text = b"%d" % bad.display.connectors[0].req_ref
                await bad.hypervisor.store.write("device/vdispl/0/1/req-ring-ref", text)
            await switch(state)  # type: ignore[arg-type]

        bad.display._switch = forged  # type: ignore[method-assign]
        await stage.refused("twice")
    await stage.gone()
