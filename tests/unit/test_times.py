"""The times of flips and their latencies, compared with a plain list of all flips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from displbe.display import times
from displbe.display.times import BUCKETS, KEPT, SAMPLE, FlipTimes


class Clock:
    """A clock that the test advances."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True, scope="module")
def clock() -> Iterator[Clock]:
    """Replace the clock by one that the test advances."""
    made = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(times, "clock", made)
        yield made


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 5)), max_size=60), st.floats(0, 70))
def test_what_is_told_is_what_happened(flips: list[tuple[float, float]], after: float) -> None:
    clock = times.clock
    assert isinstance(clock, Clock)
    begun = clock.now
    kept = FlipTimes()
    shown: list[float] = []
    took: list[float] = []
    for pause, latency in flips:
        clock.now += pause + latency
        kept.add(clock.now - latency)
        shown.append(clock.now)
        took.append(clock.now - (clock.now - latency))
    clock.now += after
    told = kept.status(pending=False)
    assert told.shown == len(flips)
    assert sum(told.buckets) == len(flips)
    assert told.total_latency == pytest.approx(sum(took))
    if not flips:
        assert (told.age, told.latency) == (None, None)
        assert told.fps_1s == told.fps_60s == 0
        return
    assert told.latency is not None
    assert told.age == pytest.approx(clock.now - shown[-1])
    assert told.latency.max == max(took)
    assert told.latency.p50 == sorted(took)[len(took) // 2]
    assert min(took) <= told.latency.p50 <= told.latency.p99 <= told.latency.max
    for seconds, rate in ((1, told.fps_1s), (60, told.fps_60s)):
        start = max(clock.now - seconds, begun)
        assert rate == pytest.approx(sum(when >= start for when in shown) / max(clock.now - start, 0.001))


@pytest.mark.parametrize("count", [SAMPLE, KEPT - 1, KEPT, KEPT + 1, 3 * KEPT + 17])
def test_the_oldest_are_forgotten(clock: Clock, count: int) -> None:
    kept = FlipTimes()
    for number in range(count):
        clock.now += 1 / 256
        kept.add(clock.now - (0.5 if number < count - SAMPLE else 0.001))
    told = kept.status(pending=True)
    assert told.pending
    assert told.shown == count
    assert told.fps_1s == pytest.approx(256, rel=0.02)
    assert told.fps_60s == pytest.approx(
        256, rel=0.02
    )  # flips that are forgotten do not count as a minute without flips
    assert told.latency is not None
    assert told.latency.max == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("took", "bucket"),
    [(0.0, 0), (0.0002, 0), (0.00026, 1), (0.0005, 2), (0.0167, 7), (0.1, 9), (4.0, 14), (5.0, 15), (1e6, BUCKETS - 1)],
)
def test_the_histogram_doubles(clock: Clock, took: float, bucket: int) -> None:
    kept = FlipTimes()
    clock.now += 2e6
    kept.add(clock.now - took)
    clock.now -= 2e6
    assert kept.status(pending=False).buckets.index(1) == bucket


def test_a_flip_allocates_nothing_that_stays() -> None:
    """The memory for the times is allocated at the start, and does not grow."""
    kept = FlipTimes()
    before = {name: len(value) for name, value in vars(kept).items() if hasattr(value, "__len__")}
    for _ in range(3 * KEPT):
        kept.add(0.0)
    assert {name: len(value) for name, value in vars(kept).items() if hasattr(value, "__len__")} == before
