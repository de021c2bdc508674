"""The copying thread of an output."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from displbe.pump.native import open_pump
from displbe.sinks import copy_thread
from displbe.sinks.copy_thread import CopyThread


async def test_waiting_for_a_thread_that_is_ending() -> None:
    """A compositor that is lost while a guest gives its output back: one task ends the thread, and another waits for its jobs."""
    done: list[str] = []
    thread = CopyThread("test")
    thread.do(lambda: time.sleep(0.1))
    thread.do(lambda: done.append("job"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.close)
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await thread.idle()
        assert done == ["job"]
    with trio.fail_after(5):
        await thread.idle()


class LateFrame:
    """A copier to which the pump hands a frame when `wait` has just returned; the loop then takes the connector, and gives a job."""

    def __init__(self, _: object) -> None:
        self.resting = True
        self.is_poked = False
        self.waits: list[float | None] = []

    def wait(self, seconds: float | None) -> tuple[Any, bool]:
        """Copy the frame, if it is there."""
        self.waits.append(seconds)
        frames = 0 if self.resting else 1
        if len(self.waits) == 1:
            while not self.is_poked:
                time.sleep(0.001)
            self.resting = False
        else:
            self.resting = True
        return SimpleNamespace(frames=frames), False

    def poke(self) -> None:
        """Make `wait` return."""
        self.is_poked = True


async def test_a_frame_that_comes_while_the_thread_begins_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied before the job, which may give the frame's memory back."""
    pump, reason = open_pump()
    assert pump is not None, reason
    monkeypatch.setattr(copy_thread, "Copier", LateFrame)
    done: list[str] = []
    thread = CopyThread("test", pump)
    thread.report = lambda copied: done.append(f"{copied.frames} frame")
    thread.do(lambda: done.append("job"))
    with trio.fail_after(5):
        await thread.close()
    assert done == ["1 frame", "job"]
