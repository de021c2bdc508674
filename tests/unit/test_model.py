"""Sequences of right and wrong requests against a model: what each is answered, what is held, which events come."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import msgspec
import pytest
import trio
from fuzz.card_rig import CardMachine
from fuzz.rig import LIMITS, Machine, Rig
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.drm_model import CRTC, ModelDevice

from displbe.sinks.drm.buffer import DrmBuffer
from displbe.sinks.drm.output import DrmOutput
from displbe.wire.displif import (
    REQ_ALLOC,
    DbufCreate,
    DbufDestroy,
    FbAttach,
    FbDetach,
    GetEdid,
    PageFlip,
    PageFlipEvent,
    Request,
    SetConfig,
    UnknownRequest,
    encode_request,
)
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc, stride
from displbe.xen.port import Ledger

T = TypeVar("T")

CONNECTORS: Final = 2
WHICH: Final = st.integers(0, 9)
"""0: one that is not there; else one of those that are."""
SHAPES: Final = st.sampled_from([(64, 48, 32), (64, 48, 32), (64, 48, 16), (32, 24, 32), (1, 1, 8), (0, 0, 0)])
SHOWN: Final = tuple(fourcc(name) for name in ("XR24", "AR24", "RG24", "RG16", "XR15", "AR15", "XR12", "AR12", "YUYV"))
"""What the headless sink shows: all that Linux's frontend offers."""
CODES: Final = (*SHOWN, fourcc("NV12"))
ONE_ROW: Final = st.sampled_from([0, 0, 0, 1])
WHERE: Final = st.integers(0, CONNECTORS - 1)
SIZE: Final = 12288
"""Bytes of each buffer."""
PAGES: Final = 3


class Buffer(msgspec.Struct, frozen=True):
    """A display buffer that there is."""

    shape: tuple[int, int, int]
    ours: bool


class Framebuffer(msgspec.Struct, frozen=True):
    """A framebuffer that there is; a flip to one of another shape is a mode change."""

    dbuf: int
    shape: tuple[int, ...]


class Screen:
    """A connector."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] | None = None
        self.pending: int | None = None
        self.newest = 0
        """The framebuffer that is shown, or that the flip under way will show; 0: none, or one that is gone."""
        self.events: list[PageFlipEvent] = []
        self.seen: list[PageFlipEvent] = []

    def complete(self) -> None:
        """A flip under way is shown."""
        if self.pending is not None:
            self.events.append(PageFlipEvent(len(self.events), self.pending))
            self.pending = None


class Displif(RuleBasedStateMachine):
    """One connected device; each rule is one request with the answer that it must get."""

    @initialize(dmabufs=st.booleans())
    def connect(self, dmabufs: bool) -> None:
        """A connection, in a thread of its own. Without dma-bufs, a card's frames are copied; the headless sink has none anyway."""
        self.dmabufs = dmabufs
        self.buffers: dict[int, Buffer] = {}
        self.framebuffers: dict[int, Framebuffer] = {}
        self.screens = [Screen() for _ in range(CONNECTORS)]
        self.requests = 0
        self.up = threading.Event()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.up.wait()
        for which in (1, 2):
            self.create(1, (64, 48, 32), False)
            self.attach(which, 1, CODES[0], True, 0)
        for where in range(CONNECTORS):
            self.show(where, 1)
        self.begin()

    def begin(self) -> None:
        """What comes before the first rule."""

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as failure:
            self.failure = failure
        finally:
            self.up.set()

    async def _serve(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.over = trio.Event()
        async with self._machine() as self.machine, Rig.connected(self.machine, CONNECTORS) as self.rig:
            self.up.set()
            await self.over.wait()

    @asynccontextmanager
    async def _machine(self) -> AsyncIterator[Machine]:
        machine = Machine()
        async with machine.running(screens=False):
            yield machine
        machine.close()

    def teardown(self) -> None:
        """The end of the connection: Rig looks whether anything is still held."""
        if hasattr(self, "thread") and self.thread.is_alive():
            trio.from_thread.run_sync(self.over.set, trio_token=self.token)
            self.thread.join()
        if getattr(self, "failure", None) is not None:
            assert self.failure is not None
            raise self.failure

    def inside(self, work: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Run something where the device is served."""
        return trio.from_thread.run(work, *arguments, trio_token=self.token)

    async def _exchange(self, where: int, request: Request, waits: bool) -> int:
        self.machine.fill_directories()  # be-alloc has written into them
        front = self.rig.fronts[where]
        slot = (self.requests & 0xFFFF).to_bytes(2, "little") + encode_request(request)[2:]
        front.put(slot)
        await self._settle(waits)
        assert self.rig.broken is None
        (answer,) = front.take_responses()
        assert (answer.id, answer.operation) == (self.requests & 0xFFFF, request.operation)
        self.requests += 1
        await self._look()
        return answer.status

    async def _settle(self, waits: bool) -> None:
        await self.rig.settle()

    async def _look(self) -> None:
        await trio.lowlevel.checkpoint()
        for screen, front in zip(self.screens, self.rig.fronts, strict=True):
            screen.seen += front.take_events()

    def expect(self, code: Errno | int, request: Request, where: int = 0, *, waits: bool = False) -> None:
        """Send a request; this is its answer. `waits`: the response may wait until the screens have refreshed."""
        assert self.inside(self._exchange, where, request, waits) == -code
        if waits:
            self.waited()

    def waited(self) -> None:
        """A request that may wait for the screens has been answered. The headless sink's requests never wait."""

    @staticmethod
    def one_of(there: dict[int, T], which: int) -> int:
        """A cookie."""
        return list(there)[which % len(there)] if which and there else 0xDEAD

    @staticmethod
    def new(there: dict[int, T], which: int, base: int) -> int:
        """A cookie that is free, and was perhaps used before; or one that is in use."""
        if not which and there:
            return next(iter(there))
        return next(cookie for cookie in range(base, base + 4096, 64) if cookie not in there)

    # Buffers

    def _create(self, cookie: int, shape: tuple[int, int, int], **changes: int) -> DbufCreate:
        right = DbufCreate(0, cookie, *shape, SIZE, 0, self.machine.directories[0], 0)
        return msgspec.structs.replace(right, **changes)

    @rule(which=WHICH, shape=SHAPES, ours=st.booleans())
    def create(self, which: int, shape: tuple[int, int, int], ours: bool) -> None:
        """A right DBUF_CREATE."""
        cookie = self.new(self.buffers, which, 0x1000)
        pages = PAGES * (1 + sum(buffer.ours == ours for buffer in self.buffers.values()))
        code: Errno | int = 0
        if cookie in self.buffers:
            code = Errno.EEXIST
        elif len(self.buffers) == LIMITS.buffers or pages > (LIMITS.alloc_pages if ours else LIMITS.pages):
            code = Errno.ENOSPC
        self.expect(code, self._create(cookie, shape, flags=REQ_ALLOC if ours else 0))
        if not code:
            self.buffers[cookie] = Buffer(shape, ours)

    @rule(which=WHICH)
    def destroy(self, which: int) -> None:
        """DBUF_DESTROY; its framebuffers go first."""
        cookie = self.one_of(self.buffers, which)
        self.expect(0 if cookie in self.buffers else Errno.ENOENT, DbufDestroy(0, cookie), waits=True)
        if self.buffers.pop(cookie, None) is not None:
            for fb in [fb for fb, framebuffer in self.framebuffers.items() if framebuffer.dbuf == cookie]:
                self._forget(fb)

    def _forget(self, fb: int) -> None:
        for screen in self.screens:
            if screen.pending == fb:
                screen.complete()
            if screen.newest == fb:
                screen.newest = 0
        del self.framebuffers[fb]

    # Framebuffers

    @rule(which=WHICH, name=WHICH, code=st.sampled_from(CODES), fits=st.booleans(), smaller=ONE_ROW)
    def attach(self, which: int, name: int, code: int, fits: bool, smaller: int) -> None:
        """FB_ATTACH over all of a buffer, or one row less."""
        dbuf, fb = self.one_of(self.buffers, which), self.new(self.framebuffers, name, 0x2000)
        buffer = self.buffers.get(dbuf, Buffer((64, 48, 32), False))
        fitting = [code for code in SHOWN if FORMATS[code].bits == buffer.shape[2]]
        if fits and fitting:
            code = fitting[CODES.index(code) % len(fitting)]
        width, height, bits = buffer.shape if buffer.shape[0] else (64, 32, FORMATS[code].bits if code in SHOWN else 16)
        height = max(height - smaller, 1)
        code_of: Errno | int = 0
        if fb in self.framebuffers:
            code_of = Errno.EEXIST
        elif dbuf not in self.buffers:
            code_of = Errno.ENOENT
        elif code not in SHOWN or FORMATS[code].bits != bits:
            code_of = Errno.EINVAL
        elif len(self.framebuffers) == LIMITS.framebuffers:
            code_of = Errno.ENOSPC
        self.expect(code_of, FbAttach(0, dbuf, fb, width, height, code))
        if not code_of:
            self.framebuffers[fb] = Framebuffer(dbuf, (width, height, code, stride(width, bits)))

    @rule(which=WHICH)
    def detach(self, which: int) -> None:
        """FB_DETACH, of what is shown too."""
        fb = self.one_of(self.framebuffers, which)
        self.expect(0 if fb in self.framebuffers else Errno.ENOENT, FbDetach(0, fb), waits=True)
        if fb in self.framebuffers:
            self._forget(fb)

    # Screens

    @rule(where=WHERE, which=WHICH)
    def show(self, where: int, which: int) -> None:
        """SET_CONFIG of a whole framebuffer."""
        fb = self.one_of(self.framebuffers, which)
        framebuffer = self.framebuffers.get(fb)
        width, height = framebuffer.shape[:2] if framebuffer else (64, 48)
        config = SetConfig(0, fb, 0, 0, width, height, 32)
        self.expect(0 if framebuffer else Errno.ENOENT, config, where, waits=True)
        if framebuffer:
            self.screens[where].complete()
            self.screens[where].shape, self.screens[where].newest = framebuffer.shape, fb

    @rule(where=WHERE)
    def hide(self, where: int) -> None:
        """SET_CONFIG of nothing."""
        self.expect(0, SetConfig(0, 0, 0, 0, 0, 0, 0), where, waits=True)
        self.screens[where].complete()
        self.screens[where].shape, self.screens[where].newest = None, 0

    @rule(where=WHERE, several=st.lists(WHICH, min_size=1, max_size=4))
    def flip(self, where: int, several: list[int]) -> None:
        """PG_FLIP, perhaps to one of several before the screen has refreshed."""
        for which in several:
            self._flip(where, self.one_of(self.framebuffers, which))

    def _flip(self, where: int, fb: int) -> None:
        screen, framebuffer = self.screens[where], self.framebuffers.get(fb)
        code: Errno | int = 0
        if framebuffer is None:
            code = Errno.ENOENT
        elif screen.shape is None:
            code = Errno.EINVAL
        elif screen.pending is not None:
            code = Errno.EBUSY
        is_reshaped = not code and framebuffer is not None and framebuffer.shape != screen.shape
        self.expect(code, PageFlip(0, fb), where, waits=is_reshaped)
        if not code and framebuffer is not None:
            screen.pending = screen.newest = fb
            if framebuffer.shape != screen.shape:  # a mode change, shown at once
                screen.shape = framebuffer.shape
                screen.complete()

    @rule()
    def vblank(self) -> None:
        """The screens refresh."""
        for screen in self.screens:
            screen.complete()
        self.inside(self._vblank)

    async def _vblank(self) -> None:
        self.machine.vblank()
        await self._look()

    # What is wrong in one thing, and in one only

    @rule(
        change=st.sampled_from(
            [
                {"dbuf_cookie": 0},
                {"width": 16385},
                {"height": 0},
                {"bpp": 33},
                {"buffer_sz": 0},
                {"buffer_sz": 4096},
                {"data_ofs": 1},
                {"flags": REQ_ALLOC, "data_ofs": 4096, "buffer_sz": 1 << 14},
                {"gref_directory": 0},
                {"gref_directory": 0xFFFFFFFF},
                {"flags": REQ_ALLOC, "gref_directory": 0xFFFFFFFF},
                {"buffer_sz": 0xFFFFFFFF},
            ]
        )
    )
    @precondition(lambda self: len(self.buffers) < LIMITS.buffers)
    def create_wrongly(self, change: dict[str, int]) -> None:
        """DBUF_CREATE; an allocation may have no room left."""
        full = (
            change.get("flags")
            and PAGES * (1 + sum(buffer.ours for buffer in self.buffers.values())) > LIMITS.alloc_pages
        )
        code = (
            Errno.ENOSPC if change == {"buffer_sz": 0xFFFFFFFF} or (full and "data_ofs" not in change) else Errno.EINVAL
        )
        self.expect(code, self._create(0x9000, (64, 48, 32), **change))

    @rule(
        where=WHERE,
        change=st.sampled_from([{"fb_cookie": 0}, {"width": 16385}, {"height": 0}, {"pixel_format": 0x3231564E}]),
        part=st.sampled_from([(0, 0, 0, 0), (64, 0, 1, 1), (0, 0, 65, 1), (1, 0, 0xFFFFFFFF, 1)]),
    )
    @precondition(lambda self: self.framebuffers)
    def show_wrongly(self, where: int, change: dict[str, int], part: tuple[int, int, int, int]) -> None:
        """FB_ATTACH, SET_CONFIG."""
        right = FbAttach(0, next(iter(self.buffers)), 0x9000, 1, 1, fourcc("XR24"))
        self.expect(Errno.EINVAL, msgspec.structs.replace(right, **change))
        self.expect(Errno.EINVAL, SetConfig(0, next(iter(self.framebuffers)), *part, 32), where)

    @rule(
        operation=st.sampled_from([0, 0x0F, 0x17, 0x80, 0xFF]), where=WHERE, room=st.sampled_from([128, 4096, 0, 127])
    )
    def others(self, operation: int, where: int, room: int) -> None:
        """No operation at all; GET_EDID; what belongs on connector 0, sent on connector 1."""
        self.expect(Errno.EOPNOTSUPP, UnknownRequest(0, operation), where)
        self.expect(0 if room >= 128 else Errno.EINVAL, GetEdid(0, room, self.machine.directories[0]), where)
        for request in (self._create(0x1000, (64, 48, 32)), FbDetach(0, 0x2000), DbufDestroy(0, 0x1000)):
            self.expect(Errno.EINVAL, request, 1)

    def copied(self) -> int:
        """Return the pages of copies of frames that are charged; the headless sink has none for pictures as small as these."""
        return 0

    @invariant()
    def held(self) -> None:
        """What is held and charged is what there is."""
        if not hasattr(self, "rig"):
            return
        ours = sum(buffer.ours for buffer in self.buffers.values())
        theirs = len(self.buffers) - ours
        ledger = self.machine.host.ledger
        expected = Ledger(2 * CONNECTORS, 2 * CONNECTORS, theirs, PAGES * theirs)
        assert ledger == expected
        assert len(self.machine.host_domain.grants) == PAGES * ours
        assert self.rig.quota.used == {
            "pages": PAGES * theirs,
            "alloc_pages": PAGES * ours,
            "copy_pages": self.copied(),
            "buffers": len(self.buffers),
            "framebuffers": len(self.framebuffers),
            "connectors": CONNECTORS,
        }

    @invariant()
    def events(self) -> None:
        """One event for each accepted flip that is over, in order, numbered from 0 without a gap."""
        for screen in getattr(self, "screens", []):
            assert screen.seen == screen.events


class PumpedDisplif(Displif):
    """The same over a card whose steady flips the pump serves. Its screens refresh when a rule says so, and while a request waits."""

    machine: CardMachine

    def begin(self) -> None:
        """Flip until the pump serves it. The first flip is Python's, and so is one that comes before the copying thread's report."""
        for where in range(CONNECTORS):
            pumped = self.machine.board.pumped
            for which in (1, 0) * 10:
                self._flip(where, list(self.framebuffers)[which])
                self.vblank()
                if self.machine.board.pumped == pumped + 2:
                    break
            else:
                raise AssertionError("the pump serves no steady flips")

    @asynccontextmanager
    async def _machine(self) -> AsyncIterator[Machine]:
        async with CardMachine.made(CONNECTORS, dmabufs=self.dmabufs) as machine:
            yield machine

    def teardown(self) -> None:
        """The end of the connection, which waits for flips under way."""
        if hasattr(self, "rig"):
            self.machine.refresh()
        super().teardown()

    def waited(self) -> None:
        self.vblank()

    async def _settle(self, waits: bool) -> None:
        async with trio.open_nursery() as nursery:
            if waits:
                nursery.start_soon(self._refresh)
            await self.rig.settle()
            nursery.cancel_scope.cancel()

    async def _refresh(self) -> None:
        while True:
            self.machine.vblank()
            await trio.sleep(0.001)

    async def _vblank(self) -> None:
        self.machine.vblank()
        with trio.move_on_after(5):
            while any(len(screen.seen) < len(screen.events) for screen in self.screens):
                await trio.sleep(0.001)
                self.machine.vblank()  # a frame that a thread copies comes later
                await self._look()

    @invariant()
    def shown(self) -> None:
        """Each screen is on the framebuffer that its guest has flipped to, or on a copy of one."""
        if hasattr(self, "rig"):
            self.inside(self._check_screens)

    async def _check_screens(self) -> None:
        await trio.lowlevel.checkpoint()
        for screen, connector in zip(self.screens, self.rig.display.connectors, strict=True):
            output = connector.screen.output
            assert isinstance(output, DrmOutput)
            assert output.pipe is not None
            card = output.pipe.device
            assert isinstance(card, ModelDevice)
            shown = card.shown(output.pipe.crtc - CRTC)
            assert bool(shown) == (screen.shape is not None)
            if not screen.newest:
                continue
            connector.screen.peek()
            assert connector.screen.newest == screen.newest
            buffer = connector.screen._buffers.framebuffers[screen.newest].sink_buffers[connector.index]
            assert isinstance(buffer, DrmBuffer)
            if output.path == "copy":
                assert card.fbs[shown["FB_ID"]].dumb is not None
            else:
                assert shown["FB_ID"] == buffer.fb
            assert screen.shape is not None
            assert (shown["SRC_W"] >> 16, shown["SRC_H"] >> 16) == screen.shape[:2]

    def copied(self) -> int:
        return self.rig.quota.used["copy_pages"]


Displif.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestDisplif = pytest.mark.slow(Displif.TestCase)
PumpedDisplif.TestCase.settings = Displif.TestCase.settings
TestPumpedDisplif = pytest.mark.slow(PumpedDisplif.TestCase)


class FewPumpedDisplif(PumpedDisplif):
    """A few examples of it, for each run of the tests."""


FewPumpedDisplif.TestCase.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
TestFewPumpedDisplif = FewPumpedDisplif.TestCase
