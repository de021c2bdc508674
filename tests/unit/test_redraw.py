"""When the frame on the screen is looked at for what was drawn without a flip."""

from __future__ import annotations

import itertools
import math

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.redraw import SLOW, SLOWEST, STILL, RedrawWatch


@given(rate=st.floats(0.1, 120), found=st.lists(st.booleans(), max_size=60))
def test_pauses_stay_in_their_limits(rate: float, found: list[bool]) -> None:
    watch = RedrawWatch(rate, lambda: 1e9)
    for redrawn in found:
        before = watch.pause
        assert watch.is_due()
        watch.looked(redrawn=redrawn)
        assert 1 / rate <= watch.pause <= max(1 / rate, SLOWEST)
        assert watch.pause == 1 / rate if redrawn else watch.pause >= before


async def test_a_still_frame_is_looked_at_less_and_less_often(autojump_clock: trio.testing.MockClock) -> None:
    """Five times a second at first; after a minute, once in SLOWEST seconds, together with other work that comes at whole seconds. What is
    drawn then is looked at in the configured rate again.
    """
    looks: list[float] = []

    async def look() -> bool:
        looks.append(trio.current_time())
        return False

    watch = RedrawWatch(30)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run, look)
        await trio.sleep(100.5)
        pauses = [later - earlier for earlier, later in itertools.pairwise(looks)]
        assert sum(pause < SLOW for pause in pauses) <= 10
        assert all(pause <= 3 * SLOW for at, pause in zip(looks, pauses, strict=False) if at - began < 5)
        assert all(pause == SLOWEST for at, pause in zip(looks[:-1], pauses, strict=True) if at - began > 60)
        assert all(at == math.floor(at) for at in looks if at - began > 61)
        looks.clear()
        watch.hurry()
        hurried = trio.current_time()
        await trio.sleep(0.3)
        assert abs(looks[0] - hurried - 1 / 30) < 1e-6
        assert len(looks) >= 3
        nursery.cancel_scope.cancel()


async def test_nothing_is_looked_at_while_the_guest_flips(autojump_clock: trio.testing.MockClock) -> None:
    flipped = trio.current_time()
    looks: list[float] = []

    async def look() -> bool:
        looks.append(trio.current_time())
        return True

    watch = RedrawWatch(30, lambda: trio.current_time() - flipped)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run, look)
        for _ in range(60):
            await trio.sleep(1 / 60)
            flipped = trio.current_time()
        assert looks == []
        await trio.sleep(STILL + 1)
        nursery.cancel_scope.cancel()
    assert abs(looks[0] - flipped - STILL) < 1e-6
    assert 29 <= len(looks) <= 31
