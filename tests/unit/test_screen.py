"""What a connector's output shows: the states of the screen and of its flips by name, against a model."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from displbe.backend.quota import TokenBucket
from displbe.display.buffers import Buffers, Framebuffer
from displbe.display.events import EventState, FlipEvents
from displbe.display.screen import MODESET_BURST, Screen, ScreenState, modeset_limit
from displbe.sinks.base import Geometry, Part, SinkError
from displbe.sinks.flip import FlipClock
from displbe.wire.displif import SetConfig, decode_event
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import EVENT_SLOTS, BackEventPage, FrontEventPage
from displbe.xen.barriers import SharedMemory

OFF = SetConfig(0, 0, 0, 0, 0, 0, 0)
ONE, TWO, SMALL, FOREIGN = 0x1000, 0x1040, 0x1080, 0x10C0
"""Cookies: two of one shape, a smaller one, one that this output cannot show."""


def config(cookie: int, side: int = 64) -> SetConfig:
    """A configuration of a whole framebuffer."""
    return SetConfig(0, cookie, 0, 0, side, side, 32)


class FakeOutput:
    """An output that shows what it is told to, when the test says so."""

    name = "fake"
    path = reason = ""

    def __init__(self) -> None:
        self.flipped: Any = None
        self.charge: Any = None
        self.interrupt = lambda: None
        self.shown: object = None
        """The sink buffer that is on the screen; None: it is dark."""
        self.waiting: tuple[object, int] | None = None
        self.ready = trio.Event()
        self.ready.set()
        self.fails = False

    async def enable(self, buffer: object, part: Part) -> None:
        """base.Output.enable"""
        await self.ready.wait()
        if self.fails:
            raise SinkError(Errno.EIO, "no light")
        self.refresh()
        self.shown = buffer

    async def disable(self) -> None:
        """base.Output.disable"""
        self.refresh()
        self.shown = None

    def flip(self, buffer: object, token: int) -> None:
        """base.Output.flip"""
        assert self.waiting is None, "one flip at a time"
        if self.shown is None or self.fails:
            raise SinkError(Errno.EIO, "dark")
        self.waiting = buffer, token

    def refresh(self) -> None:
        """A flip under way is shown."""
        if self.waiting is not None:
            (self.shown, token), self.waiting = self.waiting, None
            self.flipped(token)


class Rig:
    """A screen over a fake output, and the guest's end of its event page."""

    def __init__(self, *, blanked: bool = False, modesets: float = 1e9, limit: TokenBucket | None = None) -> None:
        self.limit = limit or modeset_limit(modesets)
        page = SharedMemory(memoryview(mmap.mmap(-1, 4096)))
        self.page = page
        self.front = FrontEventPage(page)
        self.broken: list[FrontendBroken] = []
        channel = cast("Any", SimpleNamespace(notify=lambda: None))
        self.events = FlipEvents(BackEventPage(page), channel, self.broken.append)
        self.output = FakeOutput()
        self.clock = FlipClock()
        self.framebuffers: dict[int, Framebuffer] = {}
        for cookie, side in ((ONE, 64), (TWO, 64), (SMALL, 32), (FOREIGN, 64)):
            framebuffer = Framebuffer(cookie, cast("Any", None), Geometry(side, side, 0x34325258, side * 4, 0))
            framebuffer.sink_buffers.append(cast("Any", None if cookie == FOREIGN else cookie))
            self.framebuffers[cookie] = framebuffer
        buffers = cast("Buffers", SimpleNamespace(framebuffers=self.framebuffers))
        self.screen = Screen(
            cast("Any", self.output),
            0,
            (64, 64),
            buffers,
            self.events,
            self.clock,
            self.limit,
            blanked=blanked,
        )

    def taken(self) -> list[int]:
        """The cookies of the events since the last call; their ids are those that Linux expects."""
        found = []
        while (slot := self.front.take()) is not None:
            found.append(decode_event(slot).fb_cookie)
        return found


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig()
    nursery.start_soon(made.clock.run)
    nursery.start_soon(made.events.run)
    yield made
    nursery.cancel_scope.cancel()


async def test_on_and_off(rig: Rig) -> None:
    screen = rig.screen
    assert (screen.state, screen.shown()) == (ScreenState.OFF, "")
    with pytest.raises(RequestError, match="the connector is off"):
        screen.flip(ONE)
    await screen.configure(config(ONE))
    assert (screen.state, screen.shown(), rig.output.shown) == (ScreenState.ON, "64x64 XR24", ONE)
    assert screen.flip(TWO)
    assert rig.events.state is EventState.DUE
    with pytest.raises(RequestError, match="under way"):
        screen.flip(ONE)
    rig.output.refresh()
    assert (rig.events.state, rig.taken()) == (EventState.NONE, [TWO])
    await screen.configure(OFF)
    assert (screen.state, rig.output.shown) == (ScreenState.OFF, None)


async def test_a_closed_screen_does_not_use_its_output(rig: Rig) -> None:
    """A command that waits for the output while the connection ends is finished first; a later one does nothing."""
    screen = rig.screen
    await screen.configure(config(ONE))
    await screen.blank()
    rig.output.ready = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(screen.unblank)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(screen.close)
        await trio.testing.wait_all_tasks_blocked()
        assert screen.state is ScreenState.UNBLANKING
        nursery.start_soon(screen.blank)
        await trio.testing.wait_all_tasks_blocked()
        rig.output.ready.set()
    assert (screen.state, rig.output.shown) == (ScreenState.CLOSED, ONE)
    await screen.blank()
    await screen.unblank()
    assert (screen.state, rig.output.shown) == (ScreenState.CLOSED, ONE)


async def test_a_flip_that_is_a_mode_change(rig: Rig) -> None:
    await rig.screen.configure(config(ONE))
    assert not rig.screen.flip(SMALL)
    assert rig.events.state is EventState.NONE
    await rig.screen.reshape(SMALL)
    assert (rig.taken(), rig.output.shown, rig.screen.shown()) == ([SMALL], SMALL, "32x32 XR24")
    rig.output.fails = True
    with pytest.raises(SinkError):
        await rig.screen.reshape(ONE)
    assert (rig.events.state, rig.taken(), rig.screen.state) == (EventState.NONE, [], ScreenState.ON)


async def test_what_is_refused_changes_nothing(rig: Rig) -> None:
    await rig.screen.configure(config(ONE))
    for wrong in (config(FOREIGN), config(7), config(ONE, 65), config(ONE, 0), SetConfig(0, 0, 1, 0, 0, 0, 0)):
        with pytest.raises(RequestError):
            await rig.screen.configure(wrong)
    for cookie in (FOREIGN, 7):
        with pytest.raises(RequestError):
            rig.screen.flip(cookie)
    rig.output.fails = True
    with pytest.raises(SinkError):
        rig.screen.flip(TWO)
    assert (rig.screen.state, rig.events.state, rig.output.shown) == (ScreenState.ON, EventState.NONE, ONE)


async def test_a_blanked_screen(rig: Rig, autojump_clock: MockClock) -> None:
    """Flips end at 60 Hz; modes are set; `unblank` shows the newest frame."""
    screen = rig.screen
    await screen.configure(config(ONE))
    await screen.blank()
    assert (screen.state, rig.output.shown) == (ScreenState.BLANKED, None)
    begun = trio.current_time()
    for number in range(60):
        assert screen.flip((TWO, SMALL)[number % 2])
        assert rig.events.state is EventState.DUE
        with trio.fail_after(1):
            while rig.events.is_pending:
                await trio.sleep(0.001)
    assert trio.current_time() - begun == pytest.approx(1, abs=0.1)
    assert len(rig.taken()) == 60
    await screen.unblank()
    assert (screen.state, rig.output.shown, screen.shown()) == (ScreenState.ON, SMALL, "32x32 XR24")


async def test_a_guest_that_is_blanked_from_the_start() -> None:
    rig = Rig(blanked=True)
    assert rig.screen.state is ScreenState.BLANKED
    await rig.screen.configure(config(ONE))
    assert (rig.screen.state, rig.output.shown, rig.screen.shown()) == (ScreenState.BLANKED, None, "64x64 XR24")
    await rig.screen.configure(OFF)
    assert rig.screen.state is ScreenState.BLANKED
    await rig.screen.unblank()
    assert (rig.screen.state, rig.output.shown) == (ScreenState.OFF, None)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_flip_while_the_screen_is_switched_on(
    rig: Rig, nursery: trio.Nursery, autojump_clock: MockClock, fails: bool
) -> None:
    """It ends when the output is on, and is shown. When the output cannot be switched on, the timer ends it again."""
    screen, failed = rig.screen, False
    await screen.configure(config(ONE))
    await screen.blank()
    rig.output.ready = trio.Event()

    async def unblank() -> None:
        nonlocal failed
        try:
            await screen.unblank()
        except SinkError:
            failed = True

    nursery.start_soon(unblank)
    await trio.testing.wait_all_tasks_blocked()
    assert (screen.state, screen.is_blanked) == (ScreenState.UNBLANKING, True)
    assert screen.flip(TWO)
    await trio.sleep(0.5)
    assert rig.taken() == []
    rig.output.fails = fails
    rig.output.ready.set()
    await trio.sleep(0.05)
    assert rig.taken() == [TWO]
    assert failed == fails
    assert (screen.state, rig.output.shown) == ((ScreenState.BLANKED, None) if fails else (ScreenState.ON, TWO))


async def test_a_screen_that_takes_long_to_be_switched_on(
    rig: Rig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Linux waits 3.1 s for a flip's event: it gets them before that, and the newest frame is shown in the end."""
    await rig.screen.configure(config(ONE))
    await rig.screen.blank()
    rig.screen.flip(SMALL)
    rig.output.ready = trio.Event()
    nursery.start_soon(rig.screen.unblank)
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(1)
    assert rig.taken() == [], "it waits for the output, not for the timer of a blanked screen"
    await trio.sleep(2)
    assert rig.taken() == [SMALL]
    rig.screen.flip(TWO)
    rig.output.ready.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.taken(), rig.output.shown, rig.screen.state) == ([TWO], TWO, ScreenState.ON)


async def test_flips_while_the_newest_frame_is_being_shown(
    rig: Rig, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """Each time that the output is ready, the guest has flipped again. In the end its newest frame is shown."""
    await rig.screen.configure(config(ONE))
    await rig.screen.blank()
    slow = rig.output.ready = trio.Event()
    nursery.start_soon(rig.screen.unblank)
    for cookie in (TWO, SMALL, ONE, TWO):
        await trio.testing.wait_all_tasks_blocked()
        rig.screen.flip(cookie)
        await trio.sleep(3)
        assert rig.taken() == [cookie]
        ready, slow = slow, trio.Event()
        rig.output.ready = slow
        ready.set()
    slow.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.output.shown, rig.screen.state, rig.screen.shown()) == (TWO, ScreenState.ON, "64x64 XR24")


async def test_an_operator_who_does_not_wait(rig: Rig, nursery: trio.Nursery) -> None:
    """His command is cancelled while the output is being switched on: the screen stays blanked, and the guest has its event."""
    await rig.screen.configure(config(ONE))
    await rig.screen.blank()
    rig.output.ready = trio.Event()
    with trio.move_on_after(0.01):
        await rig.screen.unblank()
    assert rig.screen.state is ScreenState.BLANKED
    rig.screen.flip(TWO)
    await trio.sleep(0.1)
    assert rig.taken() == [TWO]


async def test_a_framebuffer_that_is_gone(rig: Rig) -> None:
    """The next flip is a mode change: it switches the output on."""
    await rig.screen.configure(config(ONE))
    await rig.screen.blank()
    del rig.framebuffers[ONE]
    await rig.screen.unblank()
    assert (rig.output.shown, rig.screen.state, rig.screen.shown()) == (None, ScreenState.ON, "")
    assert not rig.screen.flip(TWO)
    await rig.screen.reshape(TWO)
    assert (rig.output.shown, rig.taken()) == (TWO, [TWO])


async def test_a_full_event_page(rig: Rig) -> None:
    """The event waits, and so does the next flip."""
    await rig.screen.configure(config(ONE))
    for _ in range(EVENT_SLOTS + 1):
        rig.screen.flip(TWO)
        rig.output.refresh()
    assert (rig.events.state, rig.events.delayed, rig.events.is_pending) == (EventState.DELAYED, 1, True)
    with pytest.raises(RequestError, match="under way"):
        rig.screen.flip(ONE)
    assert len(rig.taken()) == EVENT_SLOTS
    await trio.sleep(0.1)
    assert (rig.taken(), rig.events.state) == ([TWO], EventState.NONE)


async def test_after_the_end(rig: Rig) -> None:
    """The event page is not touched any more."""
    await rig.screen.configure(config(ONE))
    rig.screen.flip(TWO)
    rig.events.close()
    rig.page.forget()
    rig.output.refresh()
    assert rig.events.state is EventState.CLOSED


async def test_an_impossible_event_index(rig: Rig) -> None:
    await rig.screen.configure(config(ONE))
    rig.page.store(0, 5000)
    rig.screen.flip(TWO)
    rig.output.refresh()
    assert "impossible event index" in str(rig.broken[0])


async def test_the_pace_of_mode_changes(autojump_clock: MockClock) -> None:
    """Eight at once, then by the limit, but none later than 2 s: its answer is due after 3 s."""
    rig = Rig(modesets=0.1)
    begun = trio.current_time()
    for _ in range(8):
        await rig.screen.configure(config(ONE))
    assert (trio.current_time() - begun, rig.screen.throttled) == (0, 0)
    await rig.screen.configure(config(ONE))
    assert (trio.current_time() - begun, rig.screen.throttled) == (2, 2)


async def test_mode_changes_that_the_output_makes(autojump_clock: MockClock) -> None:
    """What the output does because of the guest, and the end of a connection, count in the same limit, over all connections."""
    rig = Rig(modesets=1)
    begun = trio.current_time()
    await rig.screen.configure(config(ONE))
    assert [rig.output.charge() for _ in range(MODESET_BURST)] == [0] * (MODESET_BURST - 1) + [1]
    assert rig.screen.throttled == 1
    await rig.screen.close()
    assert trio.current_time() == begun
    again = Rig(limit=rig.limit)
    await again.screen.configure(config(ONE))
    assert (trio.current_time() - begun, again.screen.throttled) == (2, 2)
    await again.screen.configure(OFF)
    before = trio.current_time()
    await again.screen.close()  # it is off already
    await trio.sleep(10)
    last = Rig(limit=rig.limit)
    await last.screen.configure(config(ONE))
    assert trio.current_time() == before + 10


COOKIES = st.sampled_from([ONE, TWO, SMALL])
STEPS = st.one_of(
    st.tuples(st.just("configure"), COOKIES),
    st.tuples(st.just("flip"), COOKIES),
    st.tuples(st.sampled_from(["off", "blank", "unblank", "refresh", "wait"]), st.just(0)),
)


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=200, deadline=None)
def test_against_a_model(steps: list[tuple[str, int]]) -> None:
    """The state follows from what guest and operator have said last; the output shows the newest frame; each flip has one event."""

    async def run() -> None:
        rig = Rig()
        blanked, newest, flips = False, 0, 0
        events: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.clock.run)
            for step, cookie in steps:
                match step:
                    case "configure":
                        await rig.screen.configure(config(cookie, 32 if cookie == SMALL else 64))
                        newest = cookie
                    case "off":
                        await rig.screen.configure(OFF)
                        newest = 0
                    case "blank":
                        blanked = True
                        await rig.screen.blank()
                    case "unblank":
                        blanked = False
                        await rig.screen.unblank()
                    case "refresh":
                        rig.output.refresh()
                    case "wait":
                        await trio.sleep(0.1)
                    case "flip" if newest and not rig.events.is_pending:
                        if not rig.screen.flip(cookie):
                            assert rig.screen.state is ScreenState.ON
                            await rig.screen.reshape(cookie)
                        newest, flips = cookie, flips + 1
                expected = ScreenState.BLANKED if blanked else ScreenState.ON if newest else ScreenState.OFF
                assert rig.screen.state is expected
                on_its_way = rig.output.waiting[0] if rig.output.waiting else rig.output.shown
                assert on_its_way == (newest if expected is ScreenState.ON else None)
                events += rig.taken()
            rig.output.refresh()
            await trio.sleep(0.1)
            events += rig.taken()
            assert len(events) == flips
            assert rig.events.state is EventState.NONE
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))
