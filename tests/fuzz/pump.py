"""The compiled pump beside Python, which is its specification: two backends of the same guest, of which one has the pump.

Both get the same script: what the guest writes into its pages and whether it notifies, the card's events, and the card's answers to
commits. After each step everything that the guest, the card or the operator can see must be the same, but for times. Where the pump
leaves a step to Python, it must have changed nothing before.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import trio

from displbe.backend.quota import Limits, Quota, TokenBucket, Total
from displbe.display.buffers import Buffers, Framebuffer
from displbe.display.connector import Connector
from displbe.display.events import EventState, FlipEvents
from displbe.display.requests import RequestRing, RingState
from displbe.display.screen import Screen, ScreenState, modeset_limit
from displbe.display.steady import PumpedConnector
from displbe.display.trace import RECORD
from displbe.pump.library import ffi
from displbe.pump.native import Bucket, Pump, SystemCalls
from displbe.sinks.base import Geometry, Part, SinkError, SteadyFlips, SteadyScreen
from displbe.sinks.flip import Flip, FlipClock, FlipState
from displbe.wire.displif import SetConfig
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import EVENT_SLOTS, PAGE_SIZE, BackControlRing, BackEventPage
from displbe.xen.barriers import SharedMemory

from .choices import Choices

__all__ = ["SEEDS", "TARGETS", "compile_pump", "drive"]

PUMP: Final = Path(__file__).parents[2] / "displbe/pump"
U32: Final = 0xFFFFFFFF
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = 0, 4, 8, 12
IN_CONS: Final = 0
ONE, TWO, SMALL, FOREIGN, UNKNOWN = 0x1000, 0x1040, 0x1080, 0x10C0, (1 << 64) - 1
COOKIES: Final = (*(ONE, TWO) * 14, SMALL, FOREIGN, UNKNOWN, 0)
"""Cookies: two of one shape, a smaller one, one that this output cannot show, two that there are not."""
FBS: Final = {ONE: 41, TWO: 42}
BURST: Final = 17.0
"""Tokens of a guest. They are enough for two slow requests, so that the pump serves the flip that was under way at a SET_CONFIG."""
RATE: Final = 1e-6
"""So slow that the tokens of a script are those that it began with, and those that it fills in."""
FILE, PORT, EVENT_PORT, CARD = 70, 7, 8, 71
_new: Any = ffi.new
ANSWERS: Final = (*(0,) * 12, errno.EBUSY, errno.EACCES, errno.EINVAL)


def compile_pump(output: Path, *changes: tuple[str, str], flags: Sequence[str] = ()) -> Any:
    """Compile the pump, with these changes of its source, into a file, and return it opened."""
    source = (PUMP / "pump.c").read_text()
    for old, new in changes:
        assert source.count(old) == 1, f"pump.c has changed: {old!r} is in it {source.count(old)} times"
        source = source.replace(old, new)
    changed = output.with_suffix(".c")
    changed.write_text(source)
    command: list[str | Path] = [
        "cc",
        "-std=c11",
        "-shared",
        "-fPIC",
        "-O1",
        *flags,
        '-DPUMP_VERSION="0"',
        "-I",
        PUMP,
        "-o",
        output,
        changed,
    ]
    subprocess.run(command, check=True)
    return ffi.dlopen(str(output))


async def _not_here(request: object) -> int:
    """Refuse a slow request that these backends lack."""
    raise RequestError(Errno.EINVAL, "not here")


def _reraise(*_: object) -> None:
    """Take the place of a log: an error of displbe is an error of the test."""
    raise  # noqa: PLE0704


class Backend:
    """One connector, lit, with all that serves it in Python. It is its own event channels (port.EventChannel) and output."""

    name = "fake"
    path = reason = ""
    port = PORT
    fd = FILE

    def __init__(self, start: int, unread: int, next_id: int) -> None:
        self.ring, self.events = (SharedMemory(memoryview(bytearray(PAGE_SIZE))) for _ in range(2))
        self.calls: list[tuple[object, ...]] = []
        """Notifications, armed ports, accepted commits."""
        self.broken: list[str] = []
        self.flipped: Any = None
        self.charge: Any = None
        self.interrupt: Any = lambda: None
        self.answer = 0
        """The card's answer to the next commits."""
        clock = FlipClock()
        self.flip_state = Flip(clock, self._ended, late=2.0, first_serial=1 << 40)
        self.back = BackControlRing(self.ring)
        self.back._req_cons = self.back._rsp_prod = start
        for offset in (REQ_PROD, RSP_PROD):
            self.ring.store(offset, start)
        self.events.store(IN_CONS, start)
        page = BackEventPage(self.events)
        page.in_prod = (start + unread) & U32
        self.flip_events = FlipEvents(
            page, cast("Any", SimpleNamespace(notify=lambda: self.calls.append(("event",)))), self._break
        )
        self.flip_events.next_id = next_id
        self.screen = self._screen(clock)
        quota = Quota(Limits(), Total(1 << 20, 1))
        self.bucket = quota.requests = TokenBucket(BURST, RATE, trio.current_time)
        self.bucket.take(0)
        log = SimpleNamespace(warning=lambda *_, **__: None, exception=_reraise)
        buffers = cast("Any", self._buffers)
        self.connector = Connector(0, self.screen, buffers, self.flip_events, _not_here, quota, log, self._break)
        self.connector.start(self.back, self)

    def _screen(self, clock: FlipClock) -> Screen:
        shape, smaller = Geometry(64, 64, 0x34325258, 256, 0), Geometry(32, 32, 0x34325258, 128, 0)
        framebuffers = {}
        for cookie in (ONE, TWO, SMALL, FOREIGN):
            made = Framebuffer(cookie, cast("Any", None), smaller if cookie == SMALL else shape)
            made.sink_buffers = [None if cookie == FOREIGN else cast("Any", cookie)]
            framebuffers[cookie] = made
        self._buffers = SimpleNamespace(framebuffers=framebuffers, detach=_not_here)
        buffers = cast("Buffers", self._buffers)
        screen = Screen(
            cast("Any", self), 0, (64, 64), buffers, self.flip_events, clock, modeset_limit(1000.0), blanked=False
        )
        screen._config, screen._shape = SetConfig(0, ONE, 0, 0, 64, 64, 32), shape
        screen.state = ScreenState.ON
        return screen

    @property
    def requests(self) -> RequestRing:
        return self.connector.requests

    def _break(self, broken: FrontendBroken) -> None:
        self.broken.append(str(broken))

    def _ended(self, token: int) -> None:
        self.flipped(token)

    # port.EventChannel

    def notify(self) -> None:
        self.calls.append(("response",))

    def rearm(self) -> None:
        self.calls.append(("arm",))

    def close(self) -> None:
        """Nothing to close."""

    # base.Output

    async def enable(self, buffer: object, part: Part) -> None:
        self.calls.append(("mode", buffer))

    async def disable(self) -> None:
        self.flip_state.end()
        self.calls.append(("off",))

    def flip(self, buffer: int, token: int) -> None:
        if self.answer:
            raise SinkError(Errno.EIO, os.strerror(self.answer))
        serial = self.flip_state.begin(token)
        self.calls.append(("commit", FBS.get(buffer, 0), serial))

    # Steps

    async def fired(self) -> None:
        """The guest has notified."""
        while self.requests.notified():
            pass
        await self.settle()

    async def shown(self, serial: int) -> None:
        """An event of the card."""
        self.flip_state.on_shown(serial)

    async def settle(self) -> None:
        """Finish slow requests, and what waits behind them."""
        while self.requests.state is RingState.BUSY:
            slow = self.requests._slow
            assert slow is not None
            await self.requests._finish(*slow)
            while self.requests.look():
                pass

    async def refill(self) -> None:
        """Time has passed: there are tokens again, and room for delayed events is looked for."""
        self.bucket._tokens = BURST
        if self.flip_events.state is EventState.DELAYED:
            self.flip_events._write(self.flip_events._cookie)
        if self.requests.not_before:
            self.requests.not_before = 0.0
            while self.requests.look():
                pass
            await self.settle()

    def left(self) -> float:
        """Return the tokens that are left."""
        return self.bucket._tokens

    def state(self) -> dict[str, object]:
        """Return all that must be the same with and without the pump."""
        requests, events, times = self.requests, self.flip_events, self.flip_events.times
        records = [RECORD.unpack_from(requests.trace.memory, n * RECORD.size) for n in range(requests.trace.count)]
        return {
            "ring": self.ring.copy(0, PAGE_SIZE),
            "events": self.events.copy(0, PAGE_SIZE),
            "indices": (self.back._req_cons, self.back._rsp_prod, events.page.in_prod, events.next_id),
            "states": (
                requests.state,
                events.state,
                self.flip_state.state,
                self.screen.state,
                bool(requests.not_before),
            ),
            "flips": (self.flip_state.serial, self.flip_state.shown, self.screen.newest, times.count),
            "pending": self.flip_state.token if events.state is EventState.DUE else None,
            "times": (sum(times.buckets), [taken > 0 for taken in times.took[:200]]),
            "trace": [(status, edid, slot, read > 0, done > 0) for read, done, status, edid, slot in records],
            "tokens": round(self.left(), 2),
            "spurious": (requests.spurious.total, requests.spurious.in_a_row),
            "refused": sorted(self.connector._refusals.items()),
            "broken": self.broken,
            "calls": self.calls,
        }


class Pumped(Backend):
    """A backend with the pump: each step is the pump's while the pump owns the connector, and Python's if the pump leaves it."""

    def __init__(self, library: Any, start: int, unread: int, next_id: int) -> None:
        super().__init__(start, unread, next_id)
        self.served = 0
        """Steps that were the pump's alone."""
        self._atomic = _new("struct pump_atomic *")
        self._value = _new("uint64_t *")
        self._native = Pump(
            library, SystemCalls(lambda fd, data, size: -errno.EAGAIN, self._rearm, self._notify, self._commit)
        )
        self._library = library
        self._peeked = _new("struct pump_connector *")
        bucket = Bucket(self._native, BURST, RATE)
        self.requests._quota.requests = bucket
        pages, channels = (self.ring, self.events), (self, SimpleNamespace(fd=FILE, port=EVENT_PORT))
        self._pumped = PumpedConnector(
            self._native,
            bucket,
            self.requests,
            self.back,
            self.screen,
            self.flip_events,
            cast("Any", pages),
            cast("Any", channels),
            lambda: None,
        )
        self._c = self._pumped._struct
        self.connector.start(self.back, self, self._pumped)

    # base.Output

    def steady(self, buffers: Mapping[int, object], *, is_pending: bool) -> SteadyScreen | None:
        if self.flip_state.state is not (FlipState.WAITING if is_pending else FlipState.NONE):
            return None
        steady = SteadyScreen(
            CARD, _address(self._atomic), _address(self._value), {c: (FBS[c], 0) for c in buffers if c in FBS}
        )
        steady.serial, steady.token, steady.late, steady.still = self.flip_state.serial, self.flip_state.token, 2.0, 1e9
        return steady

    def hand_over(self) -> None:
        self.flip_state.hand_over()

    def take_back(self, flips: SteadyFlips) -> None:
        self.flip_state.take_back(flips.serial, flips.shown, flips.token, flips.age)

    # struct pump_calls

    def _rearm(self, fd: int, port: int) -> int:
        assert (fd, port) == (FILE, PORT)
        self.rearm()
        return 0

    def _notify(self, fd: int, port: int) -> int:
        assert fd == FILE
        self.calls.append(({PORT: "response", EVENT_PORT: "event"}[port],))
        return 0

    def _commit(self, fd: int, argument: Any) -> int:
        atomic: Any = ffi.cast("struct pump_atomic *", argument)
        if (fd, atomic.flags) != (CARD, 0x201):
            self.calls.append(("a wrong commit", fd, atomic.flags))
        if self.answer:
            return -self.answer
        self.calls.append(("commit", self._value[0], atomic.user_data))
        return 0

    # Steps

    def _try(self, serve: Any) -> bool:
        """Have the pump serve a step. Return False if it is Python's."""
        if not self._pumped.is_given:
            return False
        before = self._frozen()
        served = bool(serve(self._native.handle, self._c))
        self._native.peek(self._c, self._peeked)
        assert _progress(self._peeked) == _progress(self._c), "pump_peek does not report the last step"
        if not served and self._c.flips == before[0]:
            assert self._frozen() == before, "the pump has changed something, and leaves the step to Python"
        self.served += served
        return served

    def _frozen(self) -> tuple[object, ...]:
        times = self.flip_events.times
        pages = self.ring.copy(0, PAGE_SIZE), self.events.copy(0, PAGE_SIZE)
        tables = bytes(self.requests.trace.memory), bytes(times.shown), bytes(times.took), bytes(times.buckets)
        structs = bytes(ffi.buffer(self._c)), bytes(ffi.buffer(self._c.bucket))
        return self._c.flips, pages, tables, structs, list(self.calls)

    async def fired(self) -> None:
        if not self._try(self._library.pump_request):
            await super().fired()

    async def shown(self, serial: int) -> None:
        if not (serial == self._c.serial and self._try(self._library.pump_shown)):
            self.interrupt()
            await super().shown(serial)

    async def refill(self) -> None:
        self._c.bucket.empty_at = -math.inf
        await super().refill()

    def state(self) -> dict[str, object]:
        was_given = self._pumped.is_given
        self.interrupt()
        state = super().state()
        if was_given:
            self._pumped.give()
        return state

    def left(self) -> float:
        return min(BURST, (time.monotonic() - float(self._c.bucket.empty_at)) * RATE)

    def close(self) -> None:
        self._pumped.close()
        self._native.close()


def _progress(connector: Any) -> bytes:
    """Return what the pump changes of a connector."""
    first, end = (ffi.offsetof("struct pump_connector", name) for name in ("state", "edition"))
    return bytes(ffi.buffer(connector))[first:end]


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _difference(pumped: object, plain: object) -> str:
    if isinstance(pumped, bytes) and isinstance(plain, bytes):
        places = [n for n, (one, other) in enumerate(zip(pumped, plain, strict=True)) if one != other]
        first = slice(places[0] & ~3, (places[0] & ~3) + 8)
        return f"bytes {places[:8]} differ, the pump {pumped[first].hex(' ')}, Python {plain[first].hex(' ')}"
    return f"the pump {pumped!r}, Python {plain!r}"


async def _script(choices: Choices, pumped: Pumped, plain: Backend) -> None:
    both = (pumped, plain)
    req_prod = plain.back._req_cons

    def put(slot: bytes) -> None:
        nonlocal req_prod
        for each in both:
            each.ring.write(64 + (req_prod & 31) * 64, slot)
        req_prod = (req_prod + 1) & U32

    def request() -> bytes:
        operation = 0x15 if choices.below(16) else (0x14, 0x13, 0x16, 0, 0x15, 0x14)[choices.below(6)]
        cookie = COOKIES[choices.below(len(COOKIES))]
        part = (0, 0, 64, 64, 32) if choices.below(4) else (0,) * 5
        noise = choices.number(5) if choices.below(4) == 0 else 0
        return struct.pack("<HB5sQ5I28x", choices.number(2), operation, noise.to_bytes(5, "little"), cookie, *part)

    while not choices.over and not plain.broken:
        match choices.below(16):
            case 0 | 1 | 2 | 3 | 4 | 5 as many:
                for _ in range(1 if many else 1 + choices.below(4)):
                    if (req_prod - plain.back._rsp_prod) & U32 < 32:
                        put(request())
                index = req_prod if choices.below(100) else choices.number(4)
                for each in both:
                    each.ring.store(REQ_PROD, index)
                    await each.fired()
            case 6:
                for each in both:
                    await each.fired()
            case 7:
                near = (plain.back._rsp_prod + choices.below(3)) & U32
                for each in both:
                    each.ring.store(RSP_EVENT, near)
            case 8:
                left = choices.below(EVENT_SLOTS + 1) if choices.below(3) == 0 else 0
                index = (plain.flip_events.page.in_prod - left) & U32 if choices.below(60) else choices.number(4)
                for each in both:
                    each.events.store(IN_CONS, index)
            case 9:
                for each in both:
                    await each.refill()
            case 10:
                answer = ANSWERS[choices.below(len(ANSWERS))]
                for each in both:
                    each.answer = answer
            case which:
                serial = plain.flip_state.serial + (0 if which < 15 else choices.below(4) - 2)
                for each in both:
                    await each.shown(serial)
        if choices.below(3) and not plain.broken:
            continue
        wanted, got = plain.state(), pumped.state()
        for name, value in wanted.items():
            assert got[name] == value, f"{name}: {_difference(got[name], value)}"


def drive(library: Any, data: bytes) -> int:
    """Run a script, which these bytes choose, over both backends. Return the number of steps that the pump has served.

    Raises AssertionError where they differ.
    """
    choices = Choices(data)
    start = (0, U32 - 2, 1 << 31)[choices.below(3)]
    unread = (0, EVENT_SLOTS - 2, EVENT_SLOTS)[choices.below(3)]
    next_id = (0, 0xFFFE, 0x1FFFE)[choices.below(3)]

    async def main() -> int:
        pumped, plain = Pumped(library, start, unread, next_id), Backend(start, unread, next_id)
        try:
            await _script(choices, pumped, plain)
        finally:
            pumped.close()
        return pumped.served

    return trio.run(main)


@functools.cache
def _compiled() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return compile_pump(Path(folder) / "pump.so")


def pump(data: bytes) -> None:
    """Fuzz the compiled pump beside Python."""
    drive(_compiled(), data)


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {"pump": pump}
SEEDS: Final[dict[str, tuple[bytes, ...]]] = {"pump": (bytes(range(256)), bytes((0, 0, 0, 1, 0, 0, 0, 1, 1, 11) * 30))}
