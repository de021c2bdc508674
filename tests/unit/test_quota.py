"""The limits for one guest, and for all guests together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.backend.quota import SCREEN, Limits, Quotas, Total
from displbe.wire.errors import Errno, RequestError


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
