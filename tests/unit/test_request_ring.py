"""The request ring served: its states by name, its pauses, and answers in order whatever is slow."""

from __future__ import annotations

import mmap
from collections.abc import AsyncIterator, Callable

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from displbe.backend.quota import Limits, Quota, Total
from displbe.display.requests import THROTTLED, RequestRing, RingState, SlowRequest
from displbe.sinks.base import SinkError
from displbe.wire.displif import FbDetach, PageFlip, Request, SetConfig, decode_response, encode_request
from displbe.wire.errors import Errno, FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing, FrontControlRing
from displbe.xen.barriers import SharedMemory

OFF = SetConfig(0, 0, 0, 0, 0, 0, 0)
"""The slow request of these tests."""


class Rig:
    """A ring with both of its ends. Flips are served at once; a SET_CONFIG is slow until `done`; a detach is refused."""

    def __init__(self, limits: Limits) -> None:
        page = SharedMemory(memoryview(mmap.mmap(-1, 4096)))
        self.front = FrontControlRing(page)
        self.page = page
        self.answers: list[tuple[int, int]] = []
        self.done = trio.Event()
        self.served: list[Request] = []
        self.broken: list[FrontendBroken] = []
        self.armed = self.notifications = self.sent = 0
        quota = Quota(limits, Total(1 << 20, 1))
        self.ring = RequestRing(self._serve, self._refuse, self.broken.append, quota, structlog.get_logger())
        self.back = BackControlRing(page)

    def _serve(self, request: Request) -> int | SlowRequest:
        self.served.append(request)
        match request:
            case PageFlip(fb_cookie=0):
                raise ZeroDivisionError("a mistake")
            case PageFlip():
                return 0
            case SetConfig(fb_cookie=0):
                return self._slowly
            case SetConfig():
                return self._slowly_refused
            case FbDetach():
                raise SinkError(Errno.EIO, "no")
            case _:
                raise RequestError(Errno.EINVAL, "no")

    async def _slowly(self) -> int:
        await self.done.wait()
        return 128

    async def _slowly_refused(self) -> None:
        await self.done.wait()
        raise RequestError(Errno.ENOSPC, "full")

    def _refuse(self, request: Request, error: RequestError | SinkError) -> int:
        return -error.code

    # port.EventChannel

    port = 1
    fd = -1

    def notify(self) -> None:
        """The guest is notified."""
        self.notifications += 1

    def rearm(self) -> None:
        """The port is armed."""
        self.armed += 1

    def close(self) -> None:
        """Nothing to close."""

    # The guest

    def put(self, *requests: Request) -> None:
        """Send requests, without a notification."""
        for request in requests:
            self.front.put(self.sent.to_bytes(2, "little") + encode_request(request)[2:])
            self.sent += 1

    def statuses(self) -> list[int]:
        """The statuses of all answers; they are in order."""
        while (slot := self.front.take()) is not None:
            answer = decode_response(slot)
            assert answer.id == len(self.answers)
            self.answers.append((answer.status, answer.edid_sz))
        return [status for status, _ in self.answers]


@pytest.fixture
async def make(nursery: trio.Nursery) -> AsyncIterator[Callable[..., Rig]]:
    def made(**limits: float) -> Rig:
        rig = Rig(Limits(**limits))  # type: ignore[arg-type]
        assert rig.ring.state is RingState.STOPPED
        rig.ring.start(rig.back, rig)
        nursery.start_soon(rig.ring.run)
        return rig

    yield made
    nursery.cancel_scope.cancel()


Make = Callable[..., Rig]


async def test_before_and_after() -> None:
    rig = Rig(Limits())
    states = [rig.ring.state]
    rig.put(PageFlip(0, 1))
    assert not rig.ring.notified()
    assert rig.served == []
    rig.ring.start(rig.back, rig)
    states.append(rig.ring.state)
    rig.ring.stop()
    assert not rig.ring.notified()
    rig.ring.rescue()
    assert [*states, rig.ring.state] == [RingState.STOPPED, RingState.IDLE, RingState.STOPPED]
    assert (rig.served, rig.ring.rescued) == ([], 0)


async def test_fast_requests_are_served_there_and_then(make: Make) -> None:
    rig = make()
    rig.put(PageFlip(0, 1), FbDetach(0, 1), PageFlip(0, 2))
    assert not rig.ring.notified()
    assert rig.statuses() == [0, -Errno.EIO, 0]
    assert (rig.ring.state, rig.armed, rig.ring.trace.count) == (RingState.IDLE, 1, 3)


async def test_a_slow_request(make: Make) -> None:
    """The ring is BUSY until it is answered, and then serves what has waited."""
    rig = make()
    rig.put(PageFlip(0, 1), OFF, PageFlip(0, 2))
    assert not rig.ring.notified()
    assert rig.ring.state is RingState.BUSY
    await trio.testing.wait_all_tasks_blocked()
    assert not rig.ring.notified()
    rig.ring.rescue()
    rig.ring.rescue()
    assert (rig.statuses(), rig.ring.state, rig.armed) == ([0], RingState.BUSY, 0)
    rig.done.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.statuses(), rig.ring.state, rig.armed, rig.ring.rescued) == ([0, 0, 0], RingState.IDLE, 1, 0)
    assert rig.answers[1] == (0, 128)


async def test_a_slow_request_that_is_refused(make: Make) -> None:
    rig = make()
    rig.done.set()
    rig.put(SetConfig(0, 7, 0, 0, 1, 1, 32), PageFlip(0, 1))
    rig.ring.notified()
    assert rig.ring.state is RingState.BUSY
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.statuses(), rig.ring.state) == ([-Errno.ENOSPC, 0], RingState.IDLE)


async def test_a_ring_stops_when_its_frontend_breaks_a_rule(make: Make) -> None:
    rig = make()
    rig.page.store(0, 5000)  # an impossible index
    assert not rig.ring.notified()
    assert rig.ring.state is RingState.STOPPED
    assert "impossible request index" in str(rig.broken[0])


async def test_a_ring_stops_after_an_error_of_ours(make: Make) -> None:
    rig = make()
    rig.put(PageFlip(0, 0), PageFlip(0, 1))
    assert not rig.ring.notified()
    assert (rig.ring.state, rig.statuses()) == (RingState.STOPPED, [])
    assert "ZeroDivisionError" in str(rig.broken[0])


async def test_the_budget(make: Make) -> None:
    rig = make(requests_per_turn=3)
    rig.put(*[PageFlip(0, 1)] * 7)
    assert rig.ring.notified()
    assert (len(rig.statuses()), rig.armed) == (3, 0)
    assert rig.ring.look()
    assert not rig.ring.look()
    assert (len(rig.statuses()), rig.armed) == (7, 1)


async def test_spurious_events(make: Make, autojump_clock: MockClock) -> None:
    """The ring is not looked at before a time that doubles with each one; a request that comes meanwhile is served then."""
    rig = make()
    for _ in range(2):
        assert not rig.ring.notified()
    assert (rig.armed, rig.ring.not_before) == (2, 0)
    for pause in (0.002, 0.004, 0.008):
        begun = trio.current_time()
        rig.ring.notified()
        assert rig.ring.state is RingState.IDLE
        assert rig.ring.not_before == pytest.approx(begun + pause)
        armed = rig.armed
        rig.ring.notified()  # nothing is looked at: it does not count
        await trio.sleep(pause * 0.9)
        assert rig.armed == armed
        await trio.sleep(pause * 0.2)
        assert (rig.armed, rig.ring.not_before) == (armed + 1, 0)
    assert rig.ring.spurious.total == 5
    rig.ring.notified()
    rig.put(PageFlip(0, 1))
    rig.ring.notified()
    assert rig.statuses() == []
    await trio.sleep(0.1)
    assert (rig.statuses(), rig.ring.spurious.in_a_row) == ([0], 0)


async def test_throttling(make: Make, autojump_clock: MockClock) -> None:
    """More requests than the limit allows wait for at least 10 ms; a slow one counts for eight, and is answered meanwhile."""
    rig = make(requests_per_second=40.0)  # ten at once
    await trio.sleep(1)
    rig.put(*[PageFlip(0, 1)] * 2, OFF, PageFlip(0, 2), PageFlip(0, 2))
    rig.ring.notified()
    assert (rig.ring.state, rig.ring.not_before) == (RingState.BUSY, 0)
    rig.done.set()
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.statuses(), rig.ring.state) == ([0] * 4, RingState.IDLE)
    assert rig.ring.not_before == pytest.approx(trio.current_time() + 1 / 40)
    assert rig.ring.throttled >= THROTTLED
    await trio.sleep(1)
    assert (len(rig.statuses()), rig.ring.not_before) == (5, 0)


async def test_a_lost_notification(make: Make) -> None:
    """A request is rescued when it waits at two looks; not when it is another one, nor while the ring is BUSY or not to be looked at."""
    rig = make()
    rig.put(PageFlip(0, 1))
    rig.ring.rescue()
    rig.ring.notified()
    rig.put(PageFlip(0, 1))
    rig.ring.rescue()
    assert rig.ring.rescued == 0
    rig.ring.rescue()
    assert rig.ring.rescued == 1
    assert rig.statuses() == [0]
    await trio.testing.wait_all_tasks_blocked()
    assert (rig.statuses(), rig.ring.not_before) == ([0, 0], 0)


KINDS = st.sampled_from([PageFlip(0, 1), FbDetach(0, 1), OFF, SetConfig(0, 7, 0, 0, 1, 1, 32)])
EXPECTED = {PageFlip: 0, FbDetach: -Errno.EIO}


@given(
    st.lists(st.one_of(KINDS, st.sampled_from(["notify", "wait", "rescue"])), max_size=40),
    st.integers(1, 3),
    st.sampled_from([2000.0, 50.0]),
)
@settings(max_examples=150, deadline=None)
def test_every_request_is_answered_once_and_in_order(steps: list[Request | str], budget: int, rate: float) -> None:
    """Whatever is slow, refused or throttled; and the port is armed at the end, so that the next notification is heard."""

    async def run() -> None:
        rig = Rig(Limits(requests_per_turn=budget, requests_per_second=rate))
        rig.done.set()
        rig.ring.start(rig.back, rig)
        expected: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.ring.run)
            for step in steps:
                if step == "notify":
                    while rig.ring.notified():
                        pass
                elif step == "wait":
                    await trio.sleep(0.05)
                elif step == "rescue":
                    rig.ring.rescue()
                elif rig.sent - len(rig.statuses()) < 32 and not isinstance(step, str):
                    rig.put(step)
                    refused = -Errno.ENOSPC if step == SetConfig(0, 7, 0, 0, 1, 1, 32) else 0
                    expected.append(EXPECTED.get(type(step), refused))
            for _ in range(2):
                while rig.ring.notified():
                    pass
                await trio.sleep(60)
            assert rig.statuses() == expected
            assert (rig.ring.state, rig.ring.not_before, rig.broken) == (RingState.IDLE, 0, [])
            assert rig.armed
            nursery.cancel_scope.cancel()

    trio.run(run, clock=MockClock(autojump_threshold=0))
