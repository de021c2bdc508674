"""The barriers of the shared pages: on a weakly ordered memory, no message is read before it is written, and no sleeper misses one.

Each rule of ring.h that needs a barrier is a pair of programs. With all barriers, every outcome keeps the rule; without the barrier of the
rule, some outcome breaks it. The second half is the proof that the model would notice.

The compiled pump makes the same accesses in the same order: tests/proof proves that, and looks for the barriers in its instructions.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from typing import Any, Final

import pytest
from unit.weak_memory import Thread, Weakness, Words, outcomes

from displbe.wire import kbdif
from displbe.wire.kbdif import BackKbdPage, FrontKbdPage
from displbe.wire.ring import (
    PAGE_SIZE,
    BackControlRing,
    BackEventPage,
    FrontControlRing,
    FrontEventPage,
)
from displbe.xen import barriers
from displbe.xen.barriers import SharedMemory

OLD: Final = b"o" * 64
ONE: Final = b"1" * 64
NONE, ACQUIRE, RELEASE, FENCE = Weakness


class Scratch:
    """A page for the constructors, whose accesses are not part of a program."""

    words: Any = None

    def load(self, offset: int) -> int:
        return 0

    def store(self, offset: int, value: int) -> None:
        pass

    write = store

    def fence(self) -> None:
        pass

    def copy(self, offset: int, size: int) -> bytes:
        return bytes(size)


def page_with(words: dict[int, int], *, slots: bytes = OLD) -> bytes:
    """Return a page with these indices. Each slot has an old message."""
    memory = bytearray(slots * (PAGE_SIZE // len(slots)))
    memory[:64] = bytes(64)
    for offset, value in words.items():
        struct.pack_into("<I", memory, offset, value)
    return bytes(memory)


def front_ring(page: Any, req_prod: int = 0, rsp_cons: int = 0) -> FrontControlRing:
    ring = FrontControlRing(Scratch())  # type: ignore[arg-type]
    ring._page, ring._req_prod, ring._rsp_cons = page, req_prod, rsp_cons
    return ring


def back_ring(page: Any, req_cons: int = 0, rsp_prod: int = 0) -> BackControlRing:
    ring = BackControlRing(Scratch())  # type: ignore[arg-type]
    ring._load, ring._store, ring._fence = page.load, page.store, page.fence
    ring._copy, ring._write, ring._words = page.copy, page.write, page.words
    ring._req_cons, ring._rsp_prod = req_cons, rsp_prod
    return ring


def back_events(page: Any, in_prod: int = 0) -> BackEventPage:
    events = BackEventPage(Scratch())  # type: ignore[arg-type]
    events._load, events._store, events._write, events._words = page.load, page.store, page.write, page.words
    events.in_prod = in_prod
    return events


def front_events(page: Any, in_cons: int = 0) -> FrontEventPage:
    events = FrontEventPage(Scratch())  # type: ignore[arg-type]
    events._page, events._in_cons = page, in_cons
    return events


def back_kbd(page: Any, prod: int = 0) -> BackKbdPage:
    keys = BackKbdPage(Scratch())  # type: ignore[arg-type]
    keys._load, keys._store, keys._fence, keys._write = page.load, page.store, page.fence, page.write
    keys._prod = keys._notified = prod
    return keys


def front_kbd(page: Any) -> FrontKbdPage:
    keys = FrontKbdPage(Scratch())  # type: ignore[arg-type]
    keys._page = page
    return keys


# Programs


def put_request(page: Any) -> bool:
    return front_ring(page).put(ONE)


def take_request(page: Any) -> bytes | None:
    return back_ring(page).take()


def sleep_for_request(page: Any) -> bool:
    return back_ring(page).final_check()


def respond(page: Any) -> bool:
    return back_ring(page, req_cons=1).respond(ONE)


def take_response(page: Any) -> bytes | None:
    return front_ring(page, req_prod=1).take()


def sleep_for_response(page: Any) -> bool:
    return front_ring(page, req_prod=1).final_check()


def put_event(page: Any) -> bool:
    events = back_events(page)
    if events.space():
        events.put(ONE)
    return True


def take_event(page: Any) -> bytes | None:
    return front_events(page).take()


def push_key(page: Any) -> bool:
    keys = back_kbd(page)
    keys.put(ONE[: kbdif.EVENT_SIZE])
    return keys.push()


def take_keys(page: Any) -> tuple[bytes, ...]:
    return tuple(front_kbd(page).take())


ANSWERED: Final = PAGE_SIZE - 4
"""A word that stands for the frontend's notification: whoever sees it sees what was done before."""


def push_key_again(page: Any) -> bool:
    """Push a key while the last notification is not answered, and again when it is, as the caller does. Return whether the frontend is
    notified, or the caller will push again.
    """
    keys = back_kbd(page, prod=1)
    keys.put(ONE[: kbdif.EVENT_SIZE])
    return keys.push() or page.load(ANSWERED) == 0 or keys.push()


def answer_for_keys(page: Any) -> bool:
    """Take the keys and notify. Return whether the new key was among them."""
    found = front_kbd(page).take()
    page.store(ANSWERED, 1)
    return len(found) == 2


# Rules


def never_old(result: tuple[Any, ...]) -> bool:
    """A message that is taken is the one that was put."""
    return result[1] in (None, ONE, (), (ONE[: kbdif.EVENT_SIZE],))


def never_asleep(result: tuple[Any, ...]) -> bool:
    """Who sleeps is notified, or has seen the message in the last look."""
    notified, seen = result
    return bool(notified or seen)


FRESH: Final = page_with({4: 1, 12: 1})
ASLEEP: Final = page_with({4: 0, 12: 0})
"""Neither side wants a notification yet."""
KEYS: Final = page_with({})
TOLD: Final = page_with({kbdif._IN_PROD: 1, ANSWERED: 0})
"""The frontend has been notified of one key."""
RULES: Final[dict[str, tuple[bytes, Callable[[Any], Any], Callable[[Any], Any], Callable[..., bool]]]] = {
    # RING_PUSH_REQUESTS, RING_PUSH_RESPONSES: the message before its index. RING_HAS_UNCONSUMED_…: the index before the message.
    "request": (FRESH, put_request, take_request, never_old),
    "response": (FRESH, respond, take_response, never_old),
    "event": (page_with({}), put_event, take_event, never_old),
    "key": (KEYS, push_key, take_keys, never_old),
    # RING_PUSH_…_AND_CHECK_NOTIFY and RING_FINAL_CHECK_FOR_…: the own index before the look at the other side's. Events have neither:
    # the frontend is always notified.
    "last look for a request": (ASLEEP, put_request, sleep_for_request, never_asleep),
    "last look for a response": (ASLEEP, respond, sleep_for_response, never_asleep),
    # A key needs no fence: a frontend that has missed it notifies after its look.
    "last look for a key": (TOLD, push_key_again, answer_for_keys, never_asleep),
}
NEEDED: Final = [
    ("request", RELEASE, 0),
    ("request", ACQUIRE, 1),
    ("response", RELEASE, 0),
    ("response", ACQUIRE, 1),
    ("event", RELEASE, 0),
    ("event", ACQUIRE, 1),
    ("key", RELEASE, 0),
    ("key", ACQUIRE, 1),
    ("last look for a request", FENCE, 0),
    ("last look for a request", FENCE, 1),
    ("last look for a response", FENCE, 0),
    ("last look for a response", FENCE, 1),
]


PLAIN: Final = pytest.mark.parametrize("plain", [False, True])
"""Whether the backend's half uses `words`, as on x86."""


@PLAIN
@pytest.mark.parametrize("rule", RULES)
def test_with_all_barriers_the_rule_holds(rule: str, plain: bool) -> None:
    memory, one, other, holds = RULES[rule]
    found = outcomes(memory, Thread(one, plain=plain), Thread(other, plain=plain))
    assert all(map(holds, found)), found
    assert len(found) > 1, "the threads do not meet"


@PLAIN
@pytest.mark.parametrize(("rule", "weakness", "thread"), NEEDED)
def test_without_the_barrier_it_does_not(rule: str, weakness: Weakness, thread: int, plain: bool) -> None:
    memory, *programs, holds = RULES[rule]
    threads = [Thread(program, weakness if n == thread else NONE, plain) for n, program in enumerate(programs)]
    assert not all(map(holds, outcomes(memory, *threads)))


# Slots that are used again. The model has no load that reads a later store, so the order of the accesses is held by itself.


class Recorder(Scratch):
    """A page that records its accesses."""

    def __init__(self, values: dict[int, int], *, plain: bool = False) -> None:
        self.values = values
        self.words = Words(self) if plain else None
        self.accesses: list[tuple[str, int]] = []

    def load(self, offset: int) -> int:
        self.accesses.append(("load", offset))
        return self.values.get(offset, 0)

    def store(self, offset: int, value: int) -> None:
        self.accesses.append(("store", offset))

    def write(self, offset: int, data: bytes) -> None:  # type: ignore[override]
        self.accesses.append(("write", offset))

    def copy(self, offset: int, size: int) -> bytes:
        self.accesses.append(("copy", offset))
        return bytes(size)

    def fence(self) -> None:
        self.accesses.append(("fence", 0))


@PLAIN
def test_a_request_is_copied_before_its_slot_is_given_back(plain: bool) -> None:
    page = Recorder({0: 1}, plain=plain)
    ring = back_ring(page)
    ring.take()
    ring.respond(ONE)
    assert page.accesses == [
        ("load", 0),
        ("copy", 64),
        ("write", 64),
        ("store", 8),  # rsp_prod, a release: from here on the frontend may use the slot
        ("fence", 0),
        ("load", 12),
    ]


def test_a_slot_is_used_again_only_after_its_response() -> None:
    page = Recorder({8: 1})
    ring = front_ring(page, req_prod=1)
    ring.take()
    ring.put(ONE)
    assert page.accesses == [("load", 8), ("copy", 64), ("write", 128), ("store", 0), ("fence", 0), ("load", 4)]


@PLAIN
def test_an_event_is_written_only_where_the_frontend_has_read(plain: bool) -> None:
    page = Recorder({0: 1}, plain=plain)
    events = back_events(page, in_prod=63)
    assert events.space()
    events.put(ONE)
    assert page.accesses == [("load", 0), ("write", 64), ("store", 4)]


def test_an_event_is_copied_before_its_slot_is_given_back() -> None:
    page = Recorder({4: 1})
    front_events(page).take()
    assert page.accesses == [("load", 4), ("copy", 64), ("store", 0)]


def test_a_key_is_written_only_where_the_frontend_has_read() -> None:
    page = Recorder({kbdif._IN_CONS: 1})
    keys = back_kbd(page, prod=kbdif.IN_SLOTS)
    assert keys.room() == 1
    keys.put(ONE[: kbdif.EVENT_SIZE])
    keys.push()
    assert page.accesses == [
        ("load", kbdif._IN_CONS),
        ("write", kbdif._IN_RING),
        ("store", kbdif._IN_PROD),
        ("fence", 0),
        ("load", kbdif._IN_CONS),
    ]


def test_keys_are_copied_before_their_slots_are_given_back() -> None:
    page = Recorder({kbdif._IN_PROD: 2})
    front_kbd(page).take()
    assert page.accesses[2:] == [
        ("copy", kbdif._IN_RING),
        ("copy", kbdif._IN_RING + kbdif.EVENT_SIZE),
        ("fence", 0),
        ("store", kbdif._IN_CONS),
    ]


# The accesses themselves


@pytest.mark.parametrize("ordered", [False, True])
def test_each_access_has_its_barrier(monkeypatch: pytest.MonkeyPatch, ordered: bool) -> None:
    """Where plain accesses are not ordered, each goes through libatomic with the order that its name promises."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(barriers, "ORDERED", ordered)
    for name, real in (("_load", barriers._load), ("_store", barriers._store), ("_fence", barriers._fence)):

        def called(*arguments: Any, name: str = name, real: Any = real) -> Any:
            calls.append((name, arguments[-1]))
            return real(*arguments)

        monkeypatch.setattr(barriers, name, called)
    memory = SharedMemory(memoryview(bytearray(PAGE_SIZE)))
    memory.store(8, 0xFFFFFFFE)
    assert memory.load(8) == 0xFFFFFFFE
    memory.fence()
    # <stdatomic.h>: memory_order_acquire 2, memory_order_release 3, memory_order_seq_cst 5
    assert (memory.words is not None) is ordered
    assert calls == ([("_fence", 5)] if ordered else [("_store", 3), ("_load", 2), ("_fence", 5)])


def test_only_x86_is_taken_for_ordered() -> None:
    assert (platform.machine() == "x86_64") == barriers.ORDERED
