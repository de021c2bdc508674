"""The limits for one guest, and for all guests together."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from displbe.backend.quota import (
    CHARGES,
    FRAMES,
    OWN_FILES,
    OWN_MEMORY,
    OWN_THREADS,
    SCREEN,
    THREADS,
    Limits,
    Quotas,
    Total,
)
from displbe.resources import ProcessLimits
from displbe.wire.errors import Errno, RequestError
from displbe.wire.ring import PAGE_SIZE


def test_what_is_mapped_twice_counts_twice() -> None:
    assert Total(262144, 1).limit == 196608
    assert Total(262144, 2).limit == 98304


def test_a_guest_that_takes_all_it_can_leaves_the_others_a_screen() -> None:
    total = Total(4 * 4 * SCREEN // 3, 1)
    quotas = Quotas(Limits(pages=4 * SCREEN), total)
    greedy, other, third = [quotas.enter(domid) for domid in (1, 2, 3)]
    greedy.take("pages", 2 * SCREEN)
    with pytest.raises(RequestError) as refused:
        greedy.take("pages")
    assert refused.value.code is Errno.ENOSPC
    assert (greedy.used["pages"], total.pages) == (2 * SCREEN, 2 * SCREEN)
    other.take("pages", SCREEN)
    with pytest.raises(RequestError):
        other.take("pages")
    quotas.leave(3)
    other.take("pages", SCREEN)
    other.give("pages", 2 * SCREEN)
    quotas.leave(2)
    greedy.take("pages", 2 * SCREEN)
    assert third.used["pages"] == 0


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3 * SCREEN))))
def test_every_guest_that_is_there_can_have_its_screen(wishes: list[tuple[int, int]]) -> None:
    """Whatever four guests ask for, in any order, there is room for one screen of each."""
    total = Total(4 * 5 * SCREEN // 3, 1)
    quotas = Quotas(Limits(pages=10 * SCREEN), total)
    guests = {domid: quotas.enter(domid) for domid in range(1, 5)}
    for domid, pages in wishes:
        try:
            guests[domid].take("pages", pages)
        except RequestError:
            assert guests[domid].used["pages"] + pages > SCREEN
    for guest in guests.values():
        guest.take("pages", max(0, SCREEN - guest.used["pages"]))
    assert total.pages == sum(guest.used["pages"] for guest in guests.values()) <= total.limit


@pytest.mark.parametrize(("mebibytes", "guests"), [(256, 12), (512, 24), (4096, 48)])
def test_guests_without_copies_need_no_memory_for_them(mebibytes: int, guests: int) -> None:
    """Where memory does not suffice for what is kept for each guest, each gets an equal part: its connectors are not refused."""
    quotas = Quotas(Limits(), Total(1 << 30, 2, ProcessLimits(4096, 512, 1 << 30, mebibytes << 19)))
    for quota in [quotas.enter(domid) for domid in range(guests)]:
        quota.take("connectors", 4)


@pytest.mark.parametrize(("mebibytes", "screens"), [(512, [(1920, 1080)] * 2), (1024, [(3840, 2160)])])
def test_four_guests_whose_frames_are_copied_fit_into_a_small_machine(
    mebibytes: int, screens: list[tuple[int, int]]
) -> None:
    """With the limits of displbe.service, copies may take half of the memory that the machine has."""
    quotas = Quotas(Limits(), Total(262144, 1, ProcessLimits(4096, 512, 1 << 30, mebibytes << 19)))
    for quota in [quotas.enter(domid) for domid in range(4)]:
        quota.take("connectors", len(screens))
        for width, height in screens:
            quota.take("copy_pages", FRAMES * width * height * 4 // PAGE_SIZE)


def total_of(files: int = 1 << 20, threads: int = 1 << 20, pages: int = 1 << 20) -> Total:
    """Return a total with this much for guests."""
    limits = ProcessLimits(2 * OWN_FILES + files, 2 * OWN_THREADS + threads, 2 * OWN_MEMORY + pages * PAGE_SIZE)
    total = Total(1 << 30, 1, limits)
    for name, pool in total.pools.items():
        if name != "pages":
            pool.limit = {"files": files, "threads": threads, "memory": pages}[name]
    return total


@pytest.mark.parametrize(
    ("total", "kind", "way_out"),
    [
        (total_of(files=36), "buffers", "36 files: raise LimitNOFILE= in displbe.service"),
        (total_of(threads=10), "connectors", "10 threads: raise TasksMax= in displbe.service"),
        (
            total_of(pages=15 * SCREEN),
            "copy_pages",
            "raise MemoryMax= in displbe.service, give this machine more memory, or lower copy-pages in [limits]",
        ),
        (total_of(pages=15 * SCREEN), "alloc_pages", "raise MemoryMax= in displbe.service"),
    ],
)
def test_what_all_guests_share_is_kept_for_each(total: Total, kind: str, way_out: str) -> None:
    """A greedy guest takes what it can; the other one still gets what is kept for it, and the guest is told which limit is reached."""
    quotas = Quotas(Limits(buffers=1000, connectors=1000, alloc_pages=1 << 20, copy_pages=1 << 20), total)
    greedy, other = quotas.enter(1), quotas.enter(2)
    amount = FRAMES * SCREEN // 2 if kind.endswith("pages") else 1
    taken = 0
    while taken < 100:
        try:
            greedy.take(kind, amount)
        except RequestError:
            break
        taken += 1
    assert 1 < taken < 100
    with pytest.raises(RequestError, match=re.escape(way_out)) as refused:
        greedy.take(kind, amount)
    assert refused.value.code is Errno.ENOSPC
    other.take(kind, amount)
    quotas.leave(2)  # it still holds what it took: a compositor may use its buffer
    other.give(kind, amount)
    greedy.take(kind, amount)
    for _ in range(taken + 1):
        greedy.give(kind, amount)
    quotas.leave(1)
    assert {name: pool.used for name, pool in total.pools.items()} == dict.fromkeys(total.pools, 0)


KIND = st.sampled_from(sorted(CHARGES))


@given(st.lists(st.tuples(st.integers(1, 3), KIND, st.integers(1, 3000), st.booleans())))
def test_the_pools_hold_what_the_guests_hold(steps: list[tuple[int, str, int, bool]]) -> None:
    """Whatever guests take and give back, and whether they are refused or not, each pool has the sum, and none exceeds its limit."""
    total = total_of(files=64, threads=16, pages=9 * SCREEN)
    quotas = Quotas(Limits(buffers=40, connectors=9), total)
    guests = {domid: quotas.enter(domid) for domid in (1, 2, 3)}
    for domid, kind, amount, back in steps:
        guest = guests[domid]
        if back:
            guest.give(kind, min(amount, guest.used[kind]))
            continue
        with contextlib.suppress(RequestError):
            guest.take(kind, amount if kind.endswith("pages") else amount % 5)
    for name, pool in total.pools.items():
        held = sum(each.used[kind] * CHARGES[kind].get(name, 0) for each in guests.values() for kind in CHARGES)
        assert pool.used == held + (len(guests) * THREADS if name == "threads" else 0)
        assert pool.used <= pool.limit


def test_low_limits_leave_half_to_the_guests() -> None:
    total = Total(1 << 20, 1, ProcessLimits(64, 16, 64 << 20))
    assert [total.pools[name].limit for name in ("files", "threads", "memory")] == [32, 8, 8192]


def test_eight_ordinary_screens_fit_into_the_default() -> None:
    full_hd, four_k = SCREEN // 2, 2 * SCREEN
    assert FRAMES * full_hd * (8 + 1) <= Limits().copy_pages
    assert FRAMES * four_k * (2 + 1) <= Limits().copy_pages
    assert FRAMES * four_k * 8 > Limits().copy_pages


def test_a_warning_when_the_limits_exceed_what_can_be_mapped() -> None:
    total = Total(262144, 1)
    quotas = Quotas(Limits(pages=total.limit // 2), total)
    with capture_logs() as lines:
        quotas.enter(1)
        quotas.enter(1)
        quotas.enter(2)
    assert lines == []
    with capture_logs() as lines:
        quotas.enter(3)
    (line,) = lines
    assert (line["log_level"], line["guests"], line["mappable"]) == ("warning", 3, total.limit)
