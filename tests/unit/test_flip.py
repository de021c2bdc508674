"""The flip that a guest waits for: each ends once, by the right rule."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from displbe.sinks.flip import LATE_CHECK, Flip, FlipClock, FlipState

LATE = 0.5


class Rig:
    """A flip, its clock, and a record of its calls."""

    def __init__(self) -> None:
        self.clock = FlipClock()
        self.ended: list[tuple[int, float]] = []
        self.late: list[FlipState] = []
        self.flip = Flip(self.clock, self._on_ended, late=LATE, on_late=self._on_late, first_serial=1 << 40)

    def _on_ended(self, token: int) -> None:
        self.ended.append((token, trio.current_time()))

    def _on_late(self) -> None:
        self.late.append(self.flip.state)

    @property
    def tokens(self) -> list[int]:
        return [token for token, _ in self.ended]


@pytest.fixture
async def rig(nursery: trio.Nursery) -> Rig:
    rig = Rig()
    nursery.start_soon(rig.clock.run)
    await trio.testing.wait_all_tasks_blocked()
    return rig


async def test_the_screen_ends_it(rig: Rig, autojump_clock: MockClock) -> None:
    serial = rig.flip.begin(7)
    assert rig.flip.state is FlipState.WAITING
    rig.flip.on_shown(serial)
    assert (rig.tokens, rig.flip.state, rig.flip.shown) == ([7], FlipState.NONE, 1)
    await trio.sleep(10)
    assert (rig.tokens, rig.flip.late) == ([7], 0)


async def test_a_report_about_an_earlier_flip_ends_nothing(rig: Rig, autojump_clock: MockClock) -> None:
    first = rig.flip.begin(1)
    rig.flip.end()
    rig.flip.begin(2)
    rig.flip.on_shown(first)
    assert (rig.tokens, rig.flip.state, rig.flip.shown) == ([1], FlipState.WAITING, 0)


async def test_the_timer_ends_it_at_the_next_refresh(rig: Rig, autojump_clock: MockClock) -> None:
    rig.flip.period = 0.04
    for token in range(5):
        rig.flip.begin(token)
        await trio.sleep(0.011)
        rig.flip.end_at_refresh()
        rig.flip.end_at_refresh()
        assert rig.flip.state is FlipState.TIMED
        await trio.sleep(0.04)
    assert rig.tokens == list(range(5))
    for _, when in rig.ended:
        assert (when + 1e-6) % 0.04 < 2e-6
    assert (rig.flip.late, rig.flip.shown) == (0, 0)


async def test_a_screen_that_shows_a_timed_flip_first_ends_it(rig: Rig, autojump_clock: MockClock) -> None:
    rig.flip.period = 1.0
    serial = rig.flip.begin(1)
    rig.flip.end_at_refresh()
    rig.flip.on_shown(serial)
    await trio.sleep(5)
    assert rig.tokens == [1]


async def test_a_ready_frame_is_shown_at_the_next_refresh(rig: Rig, autojump_clock: MockClock) -> None:
    rig.flip.period = 0.02
    serial = rig.flip.begin(1)
    rig.flip.on_ready(serial - 1)
    assert rig.flip.state is FlipState.WAITING
    rig.flip.on_ready(serial)
    assert (rig.flip.state, rig.flip.shown) == (FlipState.TIMED, 1)
    await trio.sleep(0.03)
    assert rig.tokens == [1]


async def test_a_silent_screen_makes_it_late(rig: Rig, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    rig.flip.begin(3)
    await trio.sleep(2)
    ((token, when),) = rig.ended
    assert token == 3
    assert LATE <= when - began <= LATE + 2 * LATE_CHECK
    assert (rig.flip.late, rig.late) == (1, [FlipState.WAITING])


async def test_a_renewed_flip_waits_for_the_new_report(rig: Rig, autojump_clock: MockClock) -> None:
    first = rig.flip.begin(1)
    rig.flip.end_at_refresh()
    second = rig.flip.renew()
    assert rig.flip.state is FlipState.WAITING
    rig.flip.on_shown(first)
    await trio.sleep(0.1)
    assert rig.tokens == []
    rig.flip.on_shown(second)
    assert rig.tokens == [1]


async def test_renewing_without_a_flip_begins_none(rig: Rig, autojump_clock: MockClock) -> None:
    rig.flip.on_shown(rig.flip.renew())
    assert (rig.tokens, rig.flip.state) == ([], FlipState.NONE)


async def test_an_error_of_one_output_does_not_stop_the_clock(rig: Rig, autojump_clock: MockClock) -> None:
    def fail(token: int) -> None:
        raise RuntimeError("an output's mistake")

    other = Flip(rig.clock, fail, late=LATE)
    other.begin(1)
    other.end_at_refresh()
    rig.flip.begin(2)
    rig.flip.end_at_refresh()
    await trio.sleep(1)
    assert rig.tokens == [2]


async def test_an_idle_clock_does_not_wake(rig: Rig, autojump_clock: MockClock) -> None:
    """Without a flip under way nothing wakes the loop; a flip after a long rest still becomes late in time."""
    await trio.sleep(1)
    before = trio.lowlevel.current_statistics().seconds_to_next_deadline
    assert before > 60
    rig.flip.begin(1)
    await trio.sleep(LATE + 2 * LATE_CHECK)
    assert rig.tokens == [1]


@given(
    steps=st.lists(st.sampled_from(["begin", "shown", "stale", "ready", "end", "timer", "renew", "wait"]), max_size=40)
)
def test_each_flip_ends_exactly_once(steps: list[str]) -> None:
    """Whatever happens in whatever order: each flip that began has ended once, in order, when the clock has had its time."""

    async def main() -> None:
        rig = Rig()
        begun = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.clock.run)
            for step in steps:
                match step:
                    case "begin" if rig.flip.state is FlipState.NONE:
                        rig.flip.begin(begun)
                        begun += 1
                    case "shown":
                        rig.flip.on_shown(rig.flip.serial)
                    case "stale":
                        rig.flip.on_shown(rig.flip.serial - 1)
                    case "ready":
                        rig.flip.on_ready(rig.flip.serial)
                    case "end":
                        rig.flip.end()
                    case "timer":
                        rig.flip.end_at_refresh()
                    case "renew":
                        rig.flip.renew()
                    case "wait":
                        await trio.sleep(0.07)
                assert len(rig.ended) == begun - (rig.flip.state is not FlipState.NONE)
            await trio.sleep(LATE + 2 * LATE_CHECK)
            nursery.cancel_scope.cancel()
        assert rig.tokens == list(range(begun))
        assert rig.flip.state is FlipState.NONE

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
