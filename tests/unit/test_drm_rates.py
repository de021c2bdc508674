"""The rates of the DRM sink's looks and flips, on a simulated clock, so that no result depends on the machine's speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from displbe.sinks.drm.copied_scanout import CopiedScanout, CopyTarget
from displbe.sinks.drm.direct_scanout import DirectScanout
from displbe.sinks.flip import Flip, FlipClock, FlipState
from displbe.sinks.frame_copy import FrameRows
from displbe.sinks.redraw import SLOWEST, STILL
from displbe.xen.memory import PrivateMemory


class Commits:
    """An Atomic whose commits all succeed."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def set(self, slot: int, value: int) -> None:
        """As Atomic's."""

    def commit(self, operation: str, flags: int, user_data: int = 0) -> None:
        """As Atomic's."""
        self.times.append(trio.current_time())


class Watched:
    """A CopyThread without a thread: the test calls `look`."""

    def __init__(self) -> None:
        self.pause = 0.0
        self.copier = None
        self.look: Callable[[], float] = lambda: 0.0

    def watch(self, look: Callable[[], float], pause: float) -> None:
        """As CopyThread's."""
        self.look, self.pause = look, pause

    def do(self, job: Callable[[], None]) -> None:
        """Run the job now."""
        job()


def _failed(error: Exception, stamp: int) -> None:
    raise AssertionError(error)


@pytest.mark.parametrize("rate", [2, 30, 120])
async def test_cards_are_told_at_the_configured_rate(autojump_clock: MockClock, rate: int) -> None:
    async with trio.open_nursery() as nursery:
        commits: Any = Commits()
        shown = DirectScanout(commits, 0, nursery.start_soon, lambda: math.inf, _failed)
        shown.watch(rate)
        await trio.sleep(10 + 1 / rate)
        shown.stop()
        assert len(commits.times) == pytest.approx((10 - STILL) * rate, abs=2)


@pytest.mark.parametrize("rate", [2, 30, 120])
def test_frames_are_looked_at_at_the_configured_rate(rate: int) -> None:
    """The rate holds at first and after each change. An unchanged frame is looked at less and less often, down to a limit."""
    copier: Any = Watched()
    memory, target = PrivateMemory(4), PrivateMemory(4)
    dumb: Any = type("Dumb", (), {"fb": 1, "pitch": 4, "memory": target})
    buffers: Any = type("Buffers", (), {"front": dumb, "back": dumb, "swap": lambda: None})
    buffer: Any = type("Buffer", (), {"memory": memory, "closed": False})
    commits: Any = type("Commits", (), {"set": lambda *_: None, "commit": lambda *_: None})
    scanout = CopiedScanout(copier, commits, 0, CopyTarget(FrameRows(0, 0, 4, 4, 1), buffers, 0), _failed)
    scanout.watch(buffer, rate)
    assert copier.pause == 1 / rate
    for turn in range(3):
        with memory.borrow() as pixels:
            pixels[0] = turn
        assert copier.look() == 1 / rate
        pauses = [copier.look() for _ in range(80)]
        assert pauses == sorted(pauses)
        assert pauses[-1] == max(1 / rate, SLOWEST)
    assert scanout.refreshed == 3
    memory.close()
    assert copier.look() == SLOWEST, "the guest has taken the frame back"
    scanout.stop()


async def test_flips_without_a_screen_complete_at_the_modes_rate(autojump_clock: MockClock) -> None:
    """Without a screen, flips end at the mode's rate, so that a guest does as much work as with a screen."""
    done: list[int] = []
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        clock = FlipClock()
        nursery.start_soon(clock.run)
        flip = Flip(clock, done.append, late=0.5)
        flip.period = 1 / 50
        for token in range(100):
            flip.begin(token)
            flip.end_at_refresh()
            while flip.state is not FlipState.NONE:
                await trio.sleep(1 / 2000)
        nursery.cancel_scope.cancel()
    assert done == list(range(100))
    assert trio.current_time() - began == pytest.approx(2, abs=0.1)
