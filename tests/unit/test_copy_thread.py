"""The copying thread of an output."""

from __future__ import annotations

import time

import trio
import trio.testing

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
