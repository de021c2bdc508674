"""The shared pages: both halves against a model, then each half against a guest that keeps to no rule."""

from __future__ import annotations

import json
import struct
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from displbe.wire.displif import MESSAGE_SIZE
from displbe.wire.errors import FrontendBroken
from displbe.wire.ring import (
    EVENT_SLOTS,
    PAGE_SIZE,
    REQUEST_SLOTS,
    BackControlRing,
    BackEventPage,
    FrontControlRing,
    FrontEventPage,
)

REQ_PROD: Final = 0
REQ_EVENT: Final = 4
RSP_PROD: Final = 8
RSP_EVENT: Final = 12
IN_CONS: Final = 0
IN_PROD: Final = 4
SLOTS: Final = 64
U32: Final = 0xFFFFFFFF

ANY_U32: Final = st.integers(0, U32)
START: Final = st.one_of(st.sampled_from([0, 1, 31, 32, 62, 63, 1 << 31]), st.integers(U32 - 70, U32))
VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "protocol" / "vectors" / "displif.json").read_text("ascii")
)


def message(number: int) -> bytes:
    """Return 64 bytes that no other call returns."""
    return number.to_bytes(8, "little") * 8


class PlainPage:
    """ring.SharedPage over a bytearray, which several pages may share; it counts the accesses made through it."""

    def __init__(self, memory: bytearray | None = None) -> None:
        self.memory = bytearray(PAGE_SIZE) if memory is None else memory
        self.loads: Counter[int] = Counter()
        self.copies: Counter[tuple[int, int]] = Counter()
        self.meanwhile: Callable[[], None] = lambda: None

    words = None

    def load(self, offset: int) -> int:
        self.meanwhile()
        self.loads[offset] += 1
        return int(struct.unpack_from("<I", self.memory, offset)[0])

    def store(self, offset: int, value: int) -> None:
        self.meanwhile()
        struct.pack_into("<I", self.memory, offset, value)

    def fence(self) -> None:
        self.meanwhile()

    def copy(self, offset: int, size: int) -> bytes:
        self.meanwhile()
        self.copies[offset, size] += 1
        return bytes(self.memory[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        self.meanwhile()
        assert len(data) <= PAGE_SIZE - offset
        self.memory[offset : offset + len(data)] = data

    def peek(self, offset: int) -> int:
        """Read without counting the access."""
        return int(struct.unpack_from("<I", self.memory, offset)[0])


def control_ring(start: int = 0) -> tuple[PlainPage, FrontControlRing, BackControlRing]:
    """Return a ring whose indices are at `start`, the backend's view of it, and both halves."""
    page = PlainPage()
    front = FrontControlRing(PlainPage(page.memory))
    back = BackControlRing(page)
    front._req_prod = front._rsp_cons = back._req_cons = back._rsp_prod = start
    struct.pack_into("<4I", page.memory, 0, start, (start + 1) & U32, start, (start + 1) & U32)
    page.loads.clear()
    return page, front, back


class ControlRing(RuleBasedStateMachine):
    """Requests and responses come out in order, each once; a side that sleeps is notified."""

    @initialize(start=START)
    def begin(self, start: int) -> None:
        self.page, self.front, self.back = control_ring(start)
        self.number = 0
        self.waiting: deque[bytes] = deque()
        self.taken: deque[bytes] = deque()
        self.answered: deque[bytes] = deque()
        self.back_sleeps = self.front_sleeps = False

    def expected_notify(self, prod: int, event: int) -> bool:
        """The macro's formula: (new - event) < (new - old)."""
        old, new = self.page.peek(prod), (self.page.peek(prod) + 1) & U32
        return (new - self.page.peek(event)) & U32 < (new - old) & U32

    @rule()
    def put(self) -> None:
        self.number += 1
        request = message(self.number)
        if len(self.waiting) + len(self.taken) + len(self.answered) == REQUEST_SLOTS:
            with pytest.raises(BufferError):
                self.front.put(request)
            return
        expected = self.expected_notify(REQ_PROD, REQ_EVENT)
        notify = self.front.put(request)
        assert notify == expected
        assert notify or not self.back_sleeps
        self.back_sleeps = self.back_sleeps and not notify
        self.waiting.append(request)

    @rule()
    def take(self) -> None:
        before = self.page.copies.total()
        request = self.back.take()
        if not self.waiting:
            assert request is None
            assert self.page.copies.total() == before
            return
        assert request == self.waiting.popleft()
        assert self.page.copies.total() == before + 1
        self.taken.append(request)

    @precondition(lambda self: self.taken)
    @rule()
    def respond(self) -> None:
        response = bytes(byte ^ 0xFF for byte in self.taken.popleft())
        expected = self.expected_notify(RSP_PROD, RSP_EVENT)
        notify = self.back.respond(response)
        assert notify == expected
        assert notify or not self.front_sleeps
        self.front_sleeps = self.front_sleeps and not notify
        self.answered.append(response)

    @rule()
    def take_response(self) -> None:
        response = self.front.take()
        assert response == (self.answered.popleft() if self.answered else None)

    @rule()
    def back_final_check(self) -> None:
        assert self.back.final_check() == bool(self.waiting)
        self.back_sleeps = not self.waiting

    @rule()
    def front_final_check(self) -> None:
        assert self.front.final_check() == bool(self.answered)
        self.front_sleeps = not self.answered

    @invariant()
    def the_back_reads_only_what_it_must(self) -> None:
        """The backend's own indices are private; a slot is copied as a whole."""
        assert set(self.page.loads) <= {REQ_PROD, RSP_EVENT}
        assert all(size == MESSAGE_SIZE and (offset - SLOTS) % MESSAGE_SIZE == 0 for offset, size in self.page.copies)


class EventPage(RuleBasedStateMachine):
    """Events come out in order, each once; at most 63 wait."""

    @initialize(start=st.sampled_from([0, 1, 62, 63, 64, (1 << 31) - 20, U32 - 5000]))
    def begin(self, start: int) -> None:
        self.page = PlainPage()
        self.front = FrontEventPage(PlainPage(self.page.memory))
        self.front._in_cons = start
        self.page.store(IN_CONS, start)
        self.back = BackEventPage(self.page)
        self.number = 0
        self.unread: deque[bytes] = deque()

    @rule(count=st.integers(1, 70))
    def put(self, count: int) -> None:
        for _ in range(count):
            assert self.back.space() == (len(self.unread) < EVENT_SLOTS)
            if not self.back.space():
                break
            self.number += 1
            self.back.put(message(self.number))
            self.unread.append(message(self.number))

    @rule(count=st.integers(1, 70))
    def take(self, count: int) -> None:
        for _ in range(count):
            assert self.front.take() == (self.unread.popleft() if self.unread else None)

    @invariant()
    def the_back_never_reads_its_own_index(self) -> None:
        assert IN_PROD not in self.page.loads
        assert not self.page.copies


TestControlRing = ControlRing.TestCase
TestControlRing.settings = settings(max_examples=60, stateful_step_count=120, deadline=None)
TestEventPage = EventPage.TestCase
TestEventPage.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)


# The control ring, and guests that keep to no rule.


@pytest.mark.parametrize("start", [0, 1, U32 - 40, U32 - 1, U32])
def test_every_slot_is_copied_once(start: int) -> None:
    """A slot is read once, so that a guest which rewrites it meanwhile has no effect."""
    page, front, back = control_ring(start)
    for number in range(3 * REQUEST_SLOTS):
        front.put(message(number))
        request = back.take()
        page.memory[SLOTS:] = b"\xee" * (PAGE_SIZE - SLOTS)
        assert request == message(number)
        back.respond(message(number))
        assert front.take() == message(number)
    expected = {(SLOTS + slot * MESSAGE_SIZE, MESSAGE_SIZE): 3 for slot in range(REQUEST_SLOTS)}
    assert page.copies == expected
    assert page.loads[REQ_PROD] == 3 * REQUEST_SLOTS


@pytest.mark.parametrize("start", [0, U32 - 10])
def test_a_full_ring(start: int) -> None:
    _, front, back = control_ring(start)
    for number in range(REQUEST_SLOTS):
        front.put(message(number))
    with pytest.raises(BufferError):
        front.put(message(99))
    assert [back.take() for _ in range(REQUEST_SLOTS)] == [message(number) for number in range(REQUEST_SLOTS)]
    assert back.take() is None
    back.respond(message(100))
    with pytest.raises(BufferError):  # the frontend has not consumed the response yet
        front.put(message(99))
    assert front.take() == message(100)
    front.put(message(99))
    assert back.take() == message(99)


@pytest.mark.parametrize("vector", VECTORS["request_prod_overflow"])
def test_the_overflow_macro(vector: dict[str, Any]) -> None:
    """While no consumed request is unanswered, exactly the rule of RING_REQUEST_PROD_OVERFLOW."""
    page, _, back = control_ring(vector["rsp_prod"])
    page.store(REQ_PROD, vector["req_prod"])
    if vector["overflow"]:
        with pytest.raises(FrontendBroken):
            back.take()
    else:
        assert (back.take() is None) == (vector["req_prod"] == vector["rsp_prod"])


@pytest.mark.parametrize("vector", VECTORS["push_one_response"])
def test_the_notify_macro(vector: dict[str, Any]) -> None:
    page, _, back = control_ring(vector["rsp_prod"])
    back._req_cons = (vector["rsp_prod"] + 1) & U32
    page.store(RSP_EVENT, vector["rsp_event"])
    assert back.respond(message(1)) == vector["notify"]
    assert page.peek(RSP_PROD) == (vector["rsp_prod"] + 1) & U32


@given(START, st.integers(0, REQUEST_SLOTS), st.data(), ANY_U32)
def test_any_request_index(start: int, taken: int, data: st.DataObject, req_prod: int) -> None:
    """No more requests are returned than the ring holds; an index behind ours or too far ahead breaks the ring."""
    page, front, back = control_ring(start)
    for number in range(taken):
        front.put(message(number))
        assert back.take() == message(number)
    answered = data.draw(st.integers(0, taken))
    for number in range(answered):
        back.respond(message(number))
    cons = start + taken
    near = data.draw(st.booleans())
    prod = (cons + data.draw(st.integers(-40, 70))) & U32 if near else req_prod
    page.store(REQ_PROD, prod)
    ahead = (prod - cons) & U32
    if ahead == 0:
        assert back.take() is None
    elif ahead <= REQUEST_SLOTS - (taken - answered):
        assert back.take() is not None
    else:
        for _ in range(2):  # it stays broken, and no request is consumed
            with pytest.raises(FrontendBroken, match="impossible request index"):
                back.take()
        assert page.copies.total() == taken


@pytest.mark.parametrize("start", [0, U32 - 3])
@pytest.mark.parametrize(
    ("ahead", "possible"), [(-5, False), (-2, False), (-1, False), (0, True), (29, True), (30, False), (32, False)]
)
def test_request_index_while_some_are_unanswered(start: int, ahead: int, possible: bool) -> None:
    """Five requests consumed, two of them answered: 29 slots are left; an index behind the five is impossible, as is one too far ahead."""
    page, front, back = control_ring(start)
    for number in range(5):
        front.put(message(number))
        back.take()
    back.respond(message(5))
    back.respond(message(6))
    page.store(REQ_PROD, (start + 5 + ahead) & U32)
    if possible:
        assert (back.take() is None) == (ahead == 0)
    else:
        with pytest.raises(FrontendBroken):
            back.take()


@given(START, ANY_U32)
def test_any_response_event(start: int, rsp_event: int) -> None:
    """A wrong rsp_event costs the guest its own notifications, and has no other effect."""
    page, front, back = control_ring(start)
    front.put(message(1))
    assert back.take() == message(1)
    page.store(RSP_EVENT, rsp_event)
    assert back.respond(message(2)) == (rsp_event == (start + 1) & U32)


@given(ANY_U32, ANY_U32)
def test_our_indices_are_not_read_back(req_event: int, rsp_prod: int) -> None:
    page, front, back = control_ring()
    front.put(message(1))
    page.store(REQ_EVENT, req_event)
    page.store(RSP_PROD, rsp_prod)
    assert back.take() == message(1)
    back.respond(message(2))
    assert page.peek(RSP_PROD) == 1
    assert not back.final_check()
    assert page.peek(REQ_EVENT) == 2


@given(st.integers(1, U32))
def test_a_page_with_responses_is_not_served(rsp_prod: int) -> None:
    """It was meant for an earlier backend."""
    page = PlainPage()
    page.store(RSP_PROD, rsp_prod)
    with pytest.raises(FrontendBroken, match="used before"):
        BackControlRing(page)


@pytest.mark.parametrize("access", range(4))
@pytest.mark.parametrize("start", [0, U32])
def test_no_request_is_lost_between_looking_and_sleeping(start: int, access: int) -> None:
    """A request that arrives before the n-th access of final_check is seen by it, or its sender notifies."""
    page, front, back = control_ring(start)
    woken = interrupt(page, access, lambda: front.put(message(1)), back.final_check)
    assert woken
    assert back.take() == message(1)


@pytest.mark.parametrize("access", range(4))
@pytest.mark.parametrize("start", [0, U32])
def test_no_response_is_lost_between_looking_and_sleeping(start: int, access: int) -> None:
    page, front, back = control_ring(start)
    front.put(message(1))
    back.take()
    front_page = PlainPage(page.memory)
    front._page = front_page
    assert interrupt(front_page, access, lambda: back.respond(message(2)), front.final_check)
    assert front.take() == message(2)


def test_a_request_during_the_final_check_is_seen_by_the_check() -> None:
    """The other side has read req_event before we wrote it, and does not notify."""
    _, front, back = control_ring()
    front.put(message(0))
    back.take()
    assert not front.put(message(1))
    assert back.final_check()
    assert back.take() == message(1)
    assert not back.final_check()
    assert front.put(message(2))


def interrupt(page: PlainPage, access: int, other: Callable[[], bool], check: Callable[[], bool]) -> bool:
    """Run `check` with `other` happening before its n-th access to the page, or after the last; return whether a side is notified."""
    woken = []
    left = [access]

    def meanwhile() -> None:
        if left[0] == 0:
            woken.append(other())
        left[0] -= 1

    page.meanwhile = meanwhile
    woken.append(check())
    page.meanwhile = lambda: None
    if left[0] >= 0:
        woken.append(other())
    return any(woken)


# The event page.


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_events_across_the_wrap(before: int) -> None:
    """2**32 is not a multiple of 63: the slots jump there, the same way on both sides. Up to three unread events do not overlap."""
    start = (1 << 32) - 200
    page = PlainPage()
    page.store(IN_CONS, start)
    front = FrontEventPage(PlainPage(page.memory))
    front._in_cons = start
    page.store(IN_CONS, start)
    back = BackEventPage(page)
    for number in range(400 + before):
        assert back.space()
        back.put(message(number))
        offset = SLOTS + ((start + number) % (1 << 32)) % EVENT_SLOTS * MESSAGE_SIZE
        assert page.memory[offset : offset + MESSAGE_SIZE] == message(number)
        if number >= before:
            assert front.take() == message(number - before)
    assert page.peek(IN_PROD) == 200 + before


@pytest.mark.parametrize("start", [0, 50, U32 - 500])
def test_a_full_event_page(start: int) -> None:
    page = PlainPage()
    page.store(IN_CONS, start)
    back = BackEventPage(page)
    for number in range(EVENT_SLOTS):
        assert back.space()
        back.put(message(number))
    assert not back.space()
    assert b"".join(message((number - start) % EVENT_SLOTS) for number in range(EVENT_SLOTS)) == page.memory[SLOTS:]
    page.store(IN_CONS, start + 1)
    assert back.space()
    back.put(message(63))
    assert not back.space()


@given(st.integers(0, EVENT_SLOTS), ANY_U32 | st.integers(-70, 70))
def test_any_event_index_of_the_guest(given_out: int, in_cons: int) -> None:
    page = PlainPage()
    back = BackEventPage(page)
    for number in range(given_out):
        back.put(message(number))
    page.store(IN_CONS, in_cons & U32)
    unread = (given_out - in_cons) & U32
    if unread <= EVENT_SLOTS:
        assert back.space() == (unread < EVENT_SLOTS)
    else:
        with pytest.raises(FrontendBroken, match="impossible event index"):
            back.space()


@given(ANY_U32)
def test_our_event_index_is_not_read_back(in_prod: int) -> None:
    page = PlainPage()
    back = BackEventPage(page)
    back.put(message(1))
    page.store(IN_PROD, in_prod)
    back.put(message(2))
    assert page.peek(IN_PROD) == 2
    assert page.memory[SLOTS : SLOTS + 2 * MESSAGE_SIZE] == message(1) + message(2)


@given(ANY_U32)
def test_a_backend_starts_where_the_frontend_reads(in_cons: int) -> None:
    page = PlainPage()
    page.store(IN_CONS, in_cons)
    page.store(IN_PROD, 12345)
    assert BackEventPage(page).space()
    assert page.peek(IN_PROD) == in_cons
