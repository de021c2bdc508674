"""When the frame on the screen is looked at for what was drawn without a flip."""

from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from displbe.sinks.redraw import SLOWEST, STILL, RedrawWatch


@given(rate=st.floats(0.1, 120), found=st.lists(st.booleans(), max_size=60))
def test_pauses_stay_in_their_limits(rate: float, found: list[bool]) -> None:
    watch = RedrawWatch(rate, lambda: 1e9)
    for redrawn in found:
        before = watch.pause
        assert watch.is_due()
        watch.looked(redrawn=redrawn)
        assert 1 / rate <= watch.pause <= max(1 / rate, SLOWEST)
        assert watch.pause == 1 / rate if redrawn else watch.pause >= before


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
