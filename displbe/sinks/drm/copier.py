"""A thread that copies frames and commits them. Made for one thing: a flip in copy mode costs no wake-up of the loop.

A worker of trio's would be woken, copy, and wake the loop again for the commit; under that much ceremony a copy of a small frame
costs less than its own transport. This thread takes jobs from a queue and only speaks up when one fails.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import trio

__all__ = ["Copier"]

Job = Callable[[], None]


class Copier:
    """One output's thread. Its methods are called from the loop."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._given = 0
        self._done = 0
        self._loop = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=f"copy {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            finally:
                self._done += 1

    def do(self, job: Job) -> None:
        """Do this after what was given before. A job must not raise; it tells the loop by `tell`."""
        self._given += 1
        self._jobs.put(job)

    def tell(self, call: Callable[[], None]) -> None:
        """From a job: call this in the loop."""
        self._loop.run_sync_soon(call)

    async def idle(self) -> None:
        """Return when everything given so far is done."""
        if self._given != self._done:
            done = trio.Event()
            self.do(lambda: self.tell(done.set))
            await done.wait()

    async def close(self) -> None:
        """End the thread, after what was given before."""
        self._jobs.put(None)
        await trio.to_thread.run_sync(self._thread.join)
