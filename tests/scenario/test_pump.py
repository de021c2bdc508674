"""Scenarios on a card whose steady flips the pump serves, and the same without the pump: all of them end alike."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import trio
from hostile.stage import forked
from scenario.cards import card_machine
from scenario.world import World, descriptors, exchange, flip_on, spec, until
from unit.drm_model import Board

from displbe.backend.quota import REQUEST_BURST, Limits
from displbe.backend.spurious_events import TOLERATED
from displbe.display.connector import Connector
from displbe.display.trace import RECORD
from displbe.ops.control import Request as OpsRequest
from displbe.ops.status import PumpStatus
from displbe.pump import native
from displbe.sim.guest import FrontConnector, Guest
from displbe.sinks.drm.copied_scanout import CopiedScanout
from displbe.sinks.drm.direct_scanout import DirectScanout
from displbe.sinks.drm.output import DrmOutput, ScreenState
from displbe.threads import NoThread
from displbe.wire.displif import DbufDestroy, FbAttach, FbDetach, PageFlip, decode_response, encode_request
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc
from displbe.wire.ring import EVENT_SLOTS
from displbe.wire.xenbus import State
from displbe.xen.evtchn import ChannelTable

CONNECTOR, OTHER = "Virtual-1", "Virtual-2"
REFRESH = 500.0
REQ_PROD, RSP_PROD = 0, 8
IN_CONS, IN_PROD = 0, 4
Pump = Literal["auto", "off"]


@pytest.fixture(params=["auto", "off"])
def pump(request: pytest.FixtureRequest) -> Pump:
    """Whether the pump serves steady flips."""
    return "auto" if request.param == "auto" else "off"


@pytest.fixture(params=["zero copy", "copy"])
def path(request: pytest.FixtureRequest) -> str:
    """How frames get to the screen."""
    return str(request.param)


class Machine:
    """A machine with a card of two connectors."""

    def __init__(self, world: World, board: Board, pump: Pump) -> None:
        self.world = world
        self.board = board
        self.pump = pump

    def output(self, name: str = CONNECTOR) -> DrmOutput:
        """Return a guest's output."""
        found = self.world.daemon.sink.claimed(name)
        assert isinstance(found, DrmOutput)
        return found

    def connector(self, index: int = 0, domid: int = 1) -> Connector:
        """Return the daemon's side of a guest's connector."""
        return self.world.device(domid).service.connectors[index]

    async def flips_go_on(self, times: list[float], count: int = 30) -> None:
        """Wait until a guest has flipped some more times. Check that what should serve the flips has served them."""
        already, pumped = len(times), self.board.pumped
        await until(lambda: len(times) >= already + count)
        assert (self.board.pumped - pumped >= count // 2) == (self.pump == "auto")

    async def lit(self, name: str = CONNECTOR) -> None:
        """Wait until a screen shows the guest's frames."""
        await until(lambda: self.output(name).state is ScreenState.LIT)

    async def dark(self, name: str = CONNECTOR) -> None:
        """Wait until a screen does not show the guest's frames."""
        await until(lambda: self.output(name).state is ScreenState.DARK)

    async def command(self, name: str) -> Any:
        """Give an operator's command. Return the answer."""
        return await self.world.daemon.commands.table()[name](OpsRequest(1, name, "1"))


@asynccontextmanager
async def running(
    folder: Path, patch: pytest.MonkeyPatch, pump: Pump, path: str, board: Board | None = None, **options: Any
) -> AsyncIterator[Machine]:
    """Run a machine."""
    board = board or Board(connectors=2)
    before = descriptors()
    async with (
        card_machine(folder, patch, board, REFRESH, dmabufs=path == "zero copy"),
        World.running(folder, sink="drm", commit=board.commit, pump=pump, **options) as world,
    ):
        yield Machine(world, board, pump)
    assert sum(card.drawn_on_screen for card in board.cards) == 0
    assert (board.pumped > 0) == (pump == "auto")
    del world
    board.cards.clear()
    assert descriptors() == before


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Pump, path: str) -> AsyncIterator[Machine]:
    """A machine with a card of two connectors."""
    monkeypatch.setattr("displbe.sinks.drm.hotplug.POLL", 0.5)  # tests need not wait long for a monitor to be noticed
    async with running(tmp_path, monkeypatch, pump, path) as machine:
        yield machine


@asynccontextmanager
async def flipping(machine: Machine, *names: str) -> AsyncIterator[tuple[Guest, list[float]]]:
    """Run a guest that flips on its last connector. At the end, each flip must have had its event, in order."""
    names = names or (CONNECTOR,)
    async with machine.world.guest(1, *map(spec, names)) as guest, flip_on(guest, len(names) - 1) as times:
        await machine.flips_go_on(times)
        yield guest, times
        await machine.flips_go_on(times)
        front = guest.display.connectors[len(names) - 1]
        assert front._next_event_id == len(front.flips_done)


async def test_steady_flips(machine: Machine, path: str) -> None:
    async with flipping(machine) as (guest, times):
        await until(lambda: len(times) >= 200)
        if machine.pump == "auto":
            assert machine.board.pumped >= 150
        status = machine.connector().status()
        done = len(guest.display.connectors[0].flips_done)
        assert abs(status.flips.shown - done) <= 1
        assert sum(status.flips.buckets) == status.flips.shown
        assert status.flips.fps_1s > 20
        assert status.flips.latency is not None
        assert 0 < status.flips.latency.p50 <= status.flips.latency.p99 <= status.flips.latency.max < 1
        assert 0 < status.flips.total_latency < sum(times) + 1
        assert status.rescued == status.refused == 0
        assert machine.output().path == path


async def test_each_request_has_its_record(machine: Machine) -> None:
    async with flipping(machine) as (_, times):
        for _ in range(5):
            await machine.flips_go_on(times, 20)
            connector = machine.connector()
            connector.peek()
            records = list(RECORD.iter_unpack(connector.requests.trace.records()))
            numbers = [int.from_bytes(slot[:2], "little") for *_, slot in records]
            assert numbers == list(range(len(numbers)))
            assert [slot[2] for *_, slot in records[5:]] == [PageFlip.operation] * (len(records) - 5)
            read, answered = [record[0] for record in records], [record[1] for record in records]
            assert read == sorted(read)
            assert all(at <= then for at, then in zip(read, answered[:-1], strict=False))
            assert {record[2] for record in records} == {0}


# The card


async def test_a_flip_that_the_card_does_not_report(machine: Machine) -> None:
    async with flipping(machine) as (_, times):
        card, output = machine.board.card, machine.output()
        assert card is not None
        card.reports = False
        already = len(times)
        await until(lambda: len(times) > already + 1)
        card.reports = True
        assert 0.45 < max(times) < 1.5, "0.5 s, and up to 0.25 s until the clock looks"
        await machine.flips_go_on(times)
        assert output._flip.late >= 1
        assert output.state is ScreenState.LIT


async def test_a_mode_change_while_a_flip_is_under_way(machine: Machine) -> None:
    """The flip's event names the flip's framebuffer, not that of the SET_CONFIG that came meanwhile."""
    async with machine.world.guest(1, spec(CONNECTOR)) as guest:
        first, second = [(await guest.display.create_framebuffer(64, 48))[1] for _ in range(2)]
        await guest.display.show(0, first, 64, 48)
        connector, card = guest.display.connectors[0], machine.board.card
        assert card is not None
        for _ in range(10):
            await connector.flip(first)
        card.reports = False
        await connector.order(PageFlip(0, first))
        await guest.display.show(0, second, 64, 48)
        assert len(connector.flips_done) == 10
        card.reports = True
        await until(lambda: len(connector.flips_done) == 11)
        assert connector.flips_done[-1] == first


@pytest.mark.parametrize("path", ["zero copy"])
async def test_a_card_that_must_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Pump, path: str) -> None:
    """While the guest does not flip, the card is told at the refresh rate; then flips go on."""
    board = Board(connectors=2)
    board.must_be_told = True
    async with (
        running(tmp_path, monkeypatch, pump, path, board) as machine,
        machine.world.guest(1, spec(CONNECTOR)) as guest,
    ):
        for _ in range(3):
            async with flip_on(guest) as times:
                await machine.flips_go_on(times)
        buffers = [await guest.display.create_framebuffer(64, 48) for _ in range(2)]
        await guest.display.show(0, buffers[0][1], 64, 48)
        for _ in range(2):
            before = board.pumped
            for count in range(20):
                await guest.display.connectors[0].flip(buffers[count % 2][1])
            assert (board.pumped > before) == (pump == "auto")
            lit = machine.output()._lit
            assert lit is not None
            assert isinstance(lit.scanout, DirectScanout)
            told = lit.scanout.refreshed
            await until(lambda: lit.scanout.refreshed >= told + 5, timeout=5)  # noqa: B023 - waited for


@pytest.mark.parametrize("path", ["copy"])
async def test_a_guest_that_flips_seldom_and_draws(machine: Machine) -> None:
    """A look at the frame shows what the guest has drawn, by the dumb buffer that the next flip would have been copied into."""
    async with machine.world.guest(1, spec(CONNECTOR)) as guest:
        buffers = [await guest.display.create_framebuffer(64, 48) for _ in range(2)]
        await guest.display.show(0, buffers[0][1], 64, 48)
        lit = machine.output()._lit
        assert lit is not None
        assert isinstance(lit.scanout, CopiedScanout)
        for count in range(8):
            for _ in range(count % 3):
                await guest.display.connectors[0].flip(buffers[0][1])
            await guest.display.connectors[0].flip(buffers[count % 2][1])
            refreshed = lit.scanout.refreshed
            buffers[count % 2][2].pixels[:4] = bytes((count, 1, 2, 3))
            await until(lambda: lit.scanout.refreshed > refreshed)  # noqa: B023 - waited for


async def test_memory_is_given_back_after_a_pause(machine: Machine) -> None:
    """A guest that has not flipped for a while sends another request: its screen is not handed over, and nothing is kept for that."""
    async with machine.world.guest(1, spec(CONNECTOR)) as guest:
        buffers = [await guest.display.create_framebuffer(64, 48) for _ in range(2)]
        await guest.display.show(0, buffers[0][1], 64, 48)
        for count in range(20):
            await guest.display.connectors[0].flip(buffers[count % 2][1])
        await trio.sleep(1.3)
        third = await guest.display.create_framebuffer(64, 48)
        for one in (*buffers, third):
            await guest.display.destroy_framebuffer(*one)


async def test_commits_that_fail(machine: Machine) -> None:
    async with flipping(machine) as (_, times):
        for number, count in (
            (errno.EBUSY, 1),
            (errno.EBUSY, 20),
            (errno.EACCES, 1),
            (errno.ENOMEM, 1),
            (errno.EINVAL, 1),
        ):
            machine.board.faults["flip"] = [number] * count
            await until(lambda: not machine.board.faults["flip"])
            await machine.lit()
            await machine.flips_go_on(times)
    assert max(times) < 3


async def test_another_program_is_master_for_a_while(machine: Machine) -> None:
    async with flipping(machine) as (_, times):
        for _ in range(2):
            assert machine.board.card is not None
            machine.board.card.take_master()
            await machine.dark()
            pumped, already = machine.board.pumped, len(times)
            await until(lambda: len(times) > already + 5)  # noqa: B023 - waited for
            assert machine.board.pumped == pumped
            machine.board.other_master = False
            await machine.lit()
            await machine.flips_go_on(times)


async def test_monitors_and_cards_come_and_go(machine: Machine) -> None:
    async with flipping(machine) as (_, times):
        monitor, machine.board.monitors[0] = machine.board.monitors[0], None
        await machine.dark()
        already = len(times)
        await until(lambda: len(times) > already + 5)
        machine.board.monitors[0] = monitor
        await machine.lit()
        await machine.flips_go_on(times)
        machine.board.unbind()
        await machine.dark()
        already = len(times)
        await until(lambda: len(times) > already + 5)
        machine.board.present = True
        await machine.lit()
        await machine.flips_go_on(times)


async def test_a_better_mode_becomes_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Pump, path: str
) -> None:
    """A screen in a lesser mode than was wanted is tested for the wanted one, though its flips never rest."""
    board = Board(connectors=2)
    monitor = board.monitors[0]
    assert monitor is not None
    monitor.modes = [(64, 48, 100), (64, 48, 60)]
    board.refuses = lambda crtc, mode: errno.ENOSPC if mode.vrefresh == 100 else 0
    monkeypatch.setattr("displbe.sinks.drm.output.BETTER", 0.3)
    monkeypatch.setattr("displbe.sinks.drm.hotplug.POLL", 1000.0)  # a new probe would also find the mode
    async with running(tmp_path, monkeypatch, pump, path, board) as machine, flipping(machine) as (_, times):
        assert "60" in machine.output().reason
        board.refuses = lambda crtc, mode: 0
        await until(lambda: "60" not in machine.output().reason, timeout=8)
        await machine.flips_go_on(times)
        lit = machine.output()._lit
        assert lit is not None
        assert lit.mode.placement.mode.refresh == 100


# Requests and commands while flips go on


async def test_the_operator_while_flips_go_on(machine: Machine) -> None:
    async with flipping(machine) as (guest, times):
        for _ in range(3):
            await machine.command("status")
            await machine.command("trace")
            await machine.flips_go_on(times)
            answer = await machine.command("screenshot")
            async with answer.held:
                pass
            await machine.flips_go_on(times)
        await machine.command("blank")
        assert machine.output().state is ScreenState.OFF
        pumped, already = machine.board.pumped, len(times)
        await until(lambda: len(times) > already + 20)
        assert machine.board.pumped == pumped
        await machine.command("unblank")
        await machine.flips_go_on(times)
        limits = msgspec.structs.replace(machine.world.settings.limits, framebuffers=3)
        machine.world.daemon.quotas.limits = limits
        await machine.flips_go_on(times)
        assert guest.display.history == [State.INIT_WAIT, State.CONNECTED]


async def test_requests_between_flips(machine: Machine) -> None:
    """All kinds of requests on the ring of the connector that flips, and the other of the device."""
    async with flipping(machine, OTHER, CONNECTOR) as (guest, times):
        display = guest.display
        for count in range(4):
            first = await display.create_framebuffer(64, 48)
            await machine.flips_go_on(times, 10)
            await display.show(0, first[1], 64, 48)
            for _ in range(5):
                await display.connectors[0].flip(first[1])
            await display.hide(0)
            await display.destroy_framebuffer(*first)
            await machine.flips_go_on(times, 10)
            if count % 2:
                answer = await exchange(display.connectors[1], b"\0\0\x77" + bytes(61))
                assert decode_response(answer).status == -Errno.EOPNOTSUPP


async def test_a_framebuffer_goes_that_another_connector_flips_to(machine: Machine) -> None:
    """FB_DETACH and DBUF_DESTROY come over ring 0. Afterwards nothing uses the pages, and no flip to them is accepted."""
    async with machine.world.guest(1, spec(OTHER), spec(CONNECTOR)) as guest:
        first, second = guest.display.connectors
        kept = await guest.display.create_framebuffer(64, 48)
        for _ in range(6):
            gone = await guest.display.create_framebuffer(64, 48)
            await guest.display.show(1, gone[1], 64, 48)
            statuses: list[int] = []
            ended = trio.Event()

            async def flip(fb: int = gone[1], ended: trio.Event = ended, found: list[int] = statuses) -> None:
                while not ended.is_set():
                    done = len(second.flips_done)
                    found.append((await second.ask(PageFlip(0, fb))).status)
                    if found[-1] == 0:
                        await until(lambda: len(second.flips_done) > done)  # noqa: B023 - waited for

            pumped = machine.board.pumped
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flip)
                await until(lambda: len(statuses) > 30)  # noqa: B023 - waited for
                assert (machine.board.pumped > pumped) == (machine.pump == "auto")
                await first.order(FbDetach(0, gone[1]))
                accepted = statuses.count(0)
                await guest.display.connectors[0].order(DbufDestroy(0, gone[0]))
                gone[2].free()  # asserts that nothing maps the pages
                await trio.sleep(0.02)
                assert statuses.count(0) <= accepted + 1, "a response may have been on its way"
                assert statuses[-1] == -Errno.ENOENT
                ended.set()
            await second.flip(kept[1])
            card = machine.board.card
            assert card is not None
            assert card.removed_shown == 0


async def test_a_cookie_is_used_again_while_flips_go_on(machine: Machine) -> None:
    """The same cookie names other pages: the next flip shows those."""
    async with flipping(machine, OTHER, CONNECTOR) as (guest, times):
        first = guest.display.connectors[0]
        dbuf, fb, _ = await guest.display.create_framebuffer(64, 48)
        for _ in range(5):
            await first.order(FbDetach(0, fb))
            await first.order(FbAttach(0, dbuf, fb, 64, 48, fourcc("XR24")))
            await machine.flips_go_on(times, 10)


# What a guest can do wrong


@asynccontextmanager
async def steady(machine: Machine) -> AsyncIterator[tuple[Guest, FrontConnector, int]]:
    """Run a guest whose connector the pump owns now, without a flip under way."""
    async with machine.world.guest(1, spec(CONNECTOR)) as guest:
        _, fb, _ = await guest.display.create_framebuffer(64, 48)
        await guest.display.show(0, fb, 64, 48)
        connector = guest.display.connectors[0]
        for _ in range(10):
            await connector.flip(fb)
        if machine.pump == "auto":
            await until(lambda: machine.connector()._pumped.is_given)  # type: ignore[union-attr]
        yield guest, connector, fb


async def shut_off(machine: Machine, guest: Guest) -> None:
    """Wait until the device has been shut off, and the guest has connected again."""
    with trio.fail_after(30):
        await guest.display.disconnected.wait()
        await guest.display.connected.wait()
    assert machine.world.held(1) == {"connectors": 1}


@pytest.mark.parametrize("value", [33, 1 << 31, -1])
async def test_an_impossible_request_index(machine: Machine, value: int) -> None:
    async with steady(machine) as (guest, connector, _):
        connector.ring_page.store(REQ_PROD, connector.ring._req_prod + value & 0xFFFFFFFF)
        connector.channel.notify()
        await shut_off(machine, guest)


async def test_an_impossible_event_index(machine: Machine) -> None:
    async with steady(machine) as (guest, connector, fb):
        connector.event_page.store(IN_CONS, connector.event_page.load(IN_PROD) + 5)
        with trio.move_on_after(1):
            await connector.flip(fb)
        await shut_off(machine, guest)


async def test_a_full_event_page(machine: Machine) -> None:
    async with steady(machine) as (_, connector, fb):
        connector.event_channel.fired = lambda: False
        done = connector.event_page.load(IN_PROD)
        for count in range(1, EVENT_SLOTS + 1):
            assert decode_response(await exchange(connector, PageFlip(0, fb))).status == 0
            await until(lambda: connector.event_page.load(IN_PROD) == done + count)  # noqa: B023 - waited for
        assert decode_response(await exchange(connector, PageFlip(0, fb))).status == 0
        await trio.sleep(0.1)
        assert connector.event_page.load(IN_PROD) == done + EVENT_SLOTS
        assert decode_response(await exchange(connector, PageFlip(0, fb))).status == -Errno.EBUSY
        assert machine.connector().status().late_events == 1
        connector.event_channel.fired = connector._on_event
        connector._on_event()
        await until(lambda: connector._next_event_id == done + EVENT_SLOTS + 1)
        pumped = machine.board.pumped
        for _ in range(20):
            await connector.flip(fb)
        assert (machine.board.pumped > pumped) == (machine.pump == "auto")
        assert connector._next_event_id == len(connector.flips_done)


async def test_a_storm_of_notifications(machine: Machine) -> None:
    async with steady(machine) as (_, connector, fb):
        host = machine.world.hypervisor.domain
        port = connector._domain.peers[connector.req_port]
        assert port is not None
        spurious = machine.connector().requests.spurious
        already = spurious.total
        for count in range(TOLERATED):
            host.raise_port(port[1])
            await until(lambda: spurious.total > already + count)  # noqa: B023 - waited for
        assert spurious.in_a_row == TOLERATED, "that the pump had the connector and served nothing does not end the row"
        with forked(lambda: host.raise_port(port[1])):
            await until(lambda: spurious.total > already + TOLERATED + 1)
            for _ in range(5):
                await connector.flip(fb)
        await trio.sleep(0.5)
        pumped = machine.board.pumped
        for _ in range(20):
            await connector.flip(fb)
        assert (machine.board.pumped > pumped) == (machine.pump == "auto")


async def test_the_limit_of_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Pump, path: str) -> None:
    """The pump and Python take from one bucket: together they serve no more than the limit."""
    limits = Limits(requests_per_second=100)
    async with (
        running(tmp_path, monkeypatch, pump, path, limits=limits) as machine,
        steady(machine) as (_, connector, fb),
    ):
        await trio.sleep(1)
        begun, before = time.monotonic(), connector._next_id
        with trio.move_on_after(1.5):
            while True:
                await connector.flip(fb)
                await exchange(connector, b"\0\0\x77" + bytes(61))
        took = time.monotonic() - begun
        served = connector._next_id - before
        assert served <= 100 * (took + REQUEST_BURST) + 2
        assert served > 100 * took / 2
        assert machine.connector().status().throttled > 0


# Ends


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.004])
async def test_a_guest_dies_under_flips(machine: Machine, delay: float) -> None:
    for _ in range(3):
        with trio.CancelScope() as scope:
            async with machine.world.guest(1, spec(CONNECTOR)) as guest, flip_on(guest) as times:
                await machine.flips_go_on(times, 20)
                await trio.sleep(delay)
                scope.cancel()
                await trio.lowlevel.checkpoint()
        await machine.world.settled()


async def test_a_connector_is_taken_back_before_its_ports_are_unbound(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that, the pump would notify a port that Xen may give to another guest."""
    closed, served = ChannelTable.closed, list[bool]()

    def unbind(self: ChannelTable, port: int) -> None:
        if self is machine.world.hypervisor.channels:
            served.append(connector.is_served)
        closed(self, port)

    async with machine.world.guest(1, spec(CONNECTOR)) as guest, flip_on(guest) as times:
        await machine.flips_go_on(times)
        connector = machine.connector()
        monkeypatch.setattr(ChannelTable, "closed", unbind)
    await machine.world.settled()
    assert served == [False, False]


async def test_the_daemon_ends_and_comes_back_under_flips(machine: Machine) -> None:
    world = machine.world
    for end in (world.stop_daemon, world.kill_daemon):
        async with world.guest(1, spec(CONNECTOR)) as guest:
            with trio.CancelScope() as scope:
                async with flip_on(guest) as times:
                    await machine.flips_go_on(times)
                    await end()
                    scope.cancel()
                    await trio.lowlevel.checkpoint()
            guest.display.connected = trio.Event()
            await world.begin()
            await world.start_daemon()
            with trio.fail_after(30):
                await guest.display.connected.wait()
            async with flip_on(guest) as times:
                await machine.flips_go_on(times)


@pytest.mark.parametrize("connections", [12, pytest.param(60, marks=pytest.mark.slow)])
async def test_a_guest_that_connects_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, connections: int
) -> None:
    """Nothing is left of the connections: no struct, no file, and no memory (memory_watch.py)."""
    limits = Limits(modesets_per_second=1e6, reconnects_per_second=1e6)
    async with running(tmp_path, monkeypatch, "auto", path, limits=limits) as machine:
        async with machine.world.guest(1, spec(CONNECTOR)) as guest:
            display = guest.display
            held: list[tuple[int, int, int]] = []
            for count in range(connections):
                _, fb, _ = await display.create_framebuffer(64, 48)
                await display.show(0, fb, 64, 48)
                for _ in range(4):
                    await display.connectors[0].flip(fb)
                await display.close()
                await display._switch(State.INITIALISING)
                display._changed.set()
                with trio.fail_after(30):
                    await display.connected.wait()
                pump = machine.world.daemon.pump
                assert pump is not None
                if count % 4 == 3:
                    held.append((len(pump._connectors), len(pump._cards), descriptors()))
        assert len(set(held[1:])) == 1
        assert held[-1][:2] == (1, 1)
        assert machine.board.pumped > connections


# More than the pump can take


async def test_more_connectors_than_the_pump_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """pump.c has CONNECTORS. Here `give` refuses the others: Python serves them."""
    give, given = native.Pump.give, 0

    def refuse(self: native.Pump, connector: Any) -> bool:
        nonlocal given
        given += 1
        return given > 50 and give(self, connector)

    monkeypatch.setattr(native.Pump, "give", refuse)
    async with running(tmp_path, monkeypatch, "auto", path) as machine, flipping_anyhow(machine) as times:
        await until(lambda: len(times) > 200)
        assert given > 50


@asynccontextmanager
async def flipping_anyhow(machine: Machine) -> AsyncIterator[list[float]]:
    """Run a guest that flips, whatever serves it."""
    async with machine.world.guest(1, spec(CONNECTOR)) as guest, flip_on(guest) as times:
        yield times
        already = len(times)
        await until(lambda: len(times) > already + 30)
        front = guest.display.connectors[0]
        assert front._next_event_id == len(front.flips_done)


@pytest.mark.parametrize("what", ["card", "event channels"])
async def test_a_file_that_the_pump_cannot_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, what: str
) -> None:
    """There are more cards than pump.c has WATCHES, or epoll has no memory: the events are read here, and end the pump's flips too."""
    watch = native.Pump._watch

    def refuse(self: native.Pump, fd: int, *, is_card: bool) -> None:
        if is_card == (what == "card"):
            raise native.PumpError(errno.ENOSPC, "No space left on device")
        watch(self, fd, is_card=is_card)

    monkeypatch.setattr(native.Pump, "_watch", refuse)
    pump: Pump = "auto" if what == "card" else "off"
    board = Board(connectors=2)
    before = descriptors()
    async with (
        card_machine(tmp_path, monkeypatch, board, REFRESH, dmabufs=path == "zero copy"),
        World.running(tmp_path, sink="drm", commit=board.commit) as world,
        flipping_anyhow(Machine(world, board, pump)) as times,
    ):
        await until(lambda: len(times) > 100)
        assert (board.pumped > 0) == (what == "card")
        await trio.sleep(1.2)
        assert len(board.cards) == 1, "the card stays open"
    del world
    board.cards.clear()
    assert descriptors() == before


async def test_no_thread_for_the_pump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python serves all flips then, and the status says why."""

    def refuse(*_: Any) -> None:
        raise NoThread

    monkeypatch.setattr(native, "start_thread", refuse)
    async with running(tmp_path, monkeypatch, "off", "zero copy") as machine:
        machine.world.settings = msgspec.structs.replace(
            machine.world.settings, daemon=type(machine.world.settings.daemon)(pump="auto")
        )
        await machine.world.stop_daemon()
        await machine.world.start_daemon()
        async with flipping(machine):
            status = await machine.world.daemon.commands.status()
            assert status.pump.state == "missing"
            assert "no thread can be started" in status.pump.reason


# The event loop


async def test_flips_while_the_event_loop_is_blocked(machine: Machine) -> None:
    """A guest in another process goes on flipping while the event loop does something else for 0.3 s, ten times: only with the pump."""
    async with steady(machine) as (_, connector, fb):
        connector.channel.fired = connector.event_channel.fired = lambda: False
        host, peer = machine.world.hypervisor.domain, connector._domain.peers[connector.req_port]
        assert peer is not None
        counts = await _flips_of_a_process(connector, fb, lambda: host.raise_port(peer[1]))
    if machine.pump == "auto":
        assert min(counts) > 15, counts
    else:
        assert max(counts) <= 2, counts


async def _flips_of_a_process(connector: FrontConnector, fb: int, notify: Callable[[], None]) -> list[int]:
    """Let a second process flip. Return the numbers of flips during 0.3 s each, in which the event loop is blocked."""
    ring, events = connector.ring_page, connector.event_page
    sent, done = connector.ring._req_prod, events.load(IN_PROD)

    def flip() -> None:
        nonlocal sent, done
        if events.load(IN_PROD) == done & 0xFFFFFFFF and ring.load(RSP_PROD) == sent & 0xFFFFFFFF:
            events.store(IN_CONS, done)
            ring.write(64 + 64 * (sent % 32), encode_request(PageFlip(sent & 0xFFFF, fb)))
            sent, done = sent + 1, done + 1
            ring.store(REQ_PROD, sent)
            notify()
        time.sleep(0.0005)

    counts = []
    with forked(flip):
        for _ in range(5):
            await trio.sleep(0.1)
            before = events.load(IN_PROD)
            time.sleep(0.3)  # noqa: ASYNC251 - this is what is tested
            counts.append(events.load(IN_PROD) - before)
    return counts


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks that look after cards and rings once a second."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """As trio.abc.Instrument's."""
        self.count += task.name.endswith(("._rescue", "Tasks._guarded"))


async def test_nothing_is_looked_after_while_the_pump_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the card nor the rings are looked at each second; the rings are again as soon as Python is the owner again."""
    monkeypatch.setattr("displbe.sinks.drm.hotplug.POLL", 1000.0)
    steps = Steps()
    async with running(tmp_path, monkeypatch, "auto", "zero copy") as machine, flipping(machine) as (_, times):
        await trio.sleep(1.1)  # the looks that were due
        await machine.flips_go_on(times)
        trio.lowlevel.add_instrument(steps)
        await trio.sleep(3.1)
        assert steps.count <= 2, "six without the pump; the card is looked at in each tenth second"
        before = steps.count
        machine.output().interrupt()
        await until(lambda: steps.count > before, 2)
        trio.lowlevel.remove_instrument(steps)


def may_have_priority() -> bool:
    """Return whether this process may have a real-time priority."""
    refused: list[OSError] = []

    def ask() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return not refused


def policies() -> dict[str, tuple[int, int]]:
    """Return the scheduling policy and priority of each thread that Python has started, by name."""
    threads = {thread.name: thread.native_id or 0 for thread in threading.enumerate()}
    return {name: (os.sched_getscheduler(tid), os.sched_getparam(tid).sched_priority) for name, tid in threads.items()}


async def test_the_pump_goes_before_what_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pump's thread has the lowest real-time priority, and no other thread has one."""
    if not may_have_priority():
        pytest.skip("no real-time priority is allowed here")
    async with running(tmp_path, monkeypatch, "auto", "copy") as machine, flipping(machine):
        assert (await machine.world.daemon.commands.status()).pump == PumpStatus("on", "")
        found = policies()
        assert found.pop("pump") == (os.SCHED_RR | os.SCHED_RESET_ON_FORK, 1)
        assert any(name.startswith("copy") for name in found)
        assert set(found.values()) == {(os.SCHED_OTHER, 0)}


async def test_a_pump_without_priority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel refuses a real-time priority, the pump runs without it, and the status says so."""

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    async with running(tmp_path, monkeypatch, "auto", "copy") as machine, flipping(machine):
        status = await machine.world.daemon.commands.status()
    assert status.pump.state == "on"
    assert status.pump.reason.startswith("its thread has no real-time priority (Operation not permitted)")
