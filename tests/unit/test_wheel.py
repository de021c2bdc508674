"""Detents of a scroll wheel (displbe.input.wheel)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from displbe.input.wheel import UNITS_PER_DETENT, WheelDetents


@given(turns=st.lists(st.integers(1, 500), max_size=50), up=st.booleans())
def test_one_direction_loses_no_unit(turns: list[int], up: bool) -> None:
    wheel, sign, taken = WheelDetents(), 1 if up else -1, 0
    for turn in turns:
        wheel.turn(sign * turn)
        taken += wheel.take()
    assert taken == sign * (sum(turns) // UNITS_PER_DETENT)


@given(first=st.integers(1, UNITS_PER_DETENT - 1), second=st.integers(1, UNITS_PER_DETENT - 1))
def test_a_change_of_direction_discards_the_incomplete_detent(first: int, second: int) -> None:
    wheel = WheelDetents()
    wheel.turn(first)
    wheel.turn(-second)
    wheel.turn(second - UNITS_PER_DETENT)
    assert wheel.take() == -1
    assert wheel.take() == 0
