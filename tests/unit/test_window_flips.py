"""The steady flips of an X11 window: what the painter's task waits for before it uses the window itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import pytest
import trio

from displbe.sinks import copy_thread
from displbe.sinks.base import Geometry, Part
from displbe.sinks.x11.window import Window
from displbe.sinks.x11.window_flips import WindowFlips, WindowFlipState
from displbe.wire.formats import fourcc
from displbe.xen.memory import Memory

GEOMETRY = Geometry(64, 48, fourcc("XR24"), 256, 0)
PART = Part(0, 0, 64, 48)


class SlowWindow:
    """A window whose server reads each frame after a while."""

    is_gone = False

    def __init__(self) -> None:
        self.read = trio.Event()
        self.read.set()
        self.puts = 0

    def suits(self, geometry: Geometry, part: Part) -> bool:
        return True

    def copy(self, memory: Memory, geometry: Geometry, part: Part) -> bool:
        return True

    def put_then(self, read: Callable[[], None]) -> None:
        self.puts += 1
        self.read = trio.Event()
        event = self.read

        async def answer() -> None:
            await trio.sleep(0.01)
            event.set()
            read()

        trio.lowlevel.spawn_system_task(answer)

    async def is_read(self) -> None:
        await self.read.wait()


async def join_here(join: Callable[[], None]) -> None:
    """Take the place of `run_in_thread_or_here` when no thread can be started."""
    join()


@pytest.mark.parametrize("ending", [False, True], ids=["finished", "closed"])
async def test_a_copied_frame_whose_report_is_on_its_way(ending: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has copied the frame, but the loop has not heard of it: the server reads it before the task uses the window."""
    monkeypatch.setattr(copy_thread, "run_in_thread_or_here", join_here)
    for _ in range(20):
        window = SlowWindow()
        flips = WindowFlips("test", lambda serial: None)
        assert flips.start(cast("Window", window), cast("Memory", None), GEOMETRY, PART, 1, trio.current_time())
        assert flips._thread is not None
        while not flips._thread.resting:
            time.sleep(0.001)  # noqa: ASYNC251  # the loop hears nothing meanwhile
        if not ending:
            await flips.finished()
            assert (flips.state, window.puts) == (WindowFlipState.IDLE, 1)
        await flips.close()
        assert flips.state is not WindowFlipState.COPYING
