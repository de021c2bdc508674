"""A thread that copies frames and commits them. Made for one thing: a flip in copy mode costs no wake-up of the loop.

A worker of trio's would be woken, copy, and wake the loop again for the commit; under that much ceremony a copy of a small frame
costs less than its own transport. This thread takes jobs from a queue and only speaks up when one fails. While it has none, it
looks now and then whether the guest has drawn without flipping, which again wakes nobody.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog
import trio

__all__ = ["Copier"]

_log = structlog.get_logger("displbe.copier")
Job = Callable[[], None]


class Copier:
    """One output's thread. Its methods are called from the loop, but those that say otherwise."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._given = 0
        self._done = 0
        self._look: Callable[[], float] | None = None
        self._pause: float | None = None
        self._loop = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._work, name=f"copy {name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=self._pause)
            except queue.Empty:
                self._try(self._look_around)
                continue
            if job is None:
                return
            self._try(job)
            self._done += 1

    def _try(self, job: Job) -> None:
        """A mistake in one job must not end the thread: every later flip would wait for it in vain."""
        try:
            job()
        except Exception:
            self._pause = None
            _log.exception("copying failed")

    def _look_around(self) -> None:
        if self._look is not None:
            self._pause = self._look()

    def do(self, job: Job) -> None:
        """Do this after what was given before. A job must not raise; it tells the loop by `tell`."""
        self._given += 1
        self._jobs.put(job)

    def tell(self, call: Callable[[], None]) -> None:
        """From a job: call this in the loop."""
        self._loop.run_sync_soon(call)

    def watch(self, look: Callable[[], float], pause: float) -> None:
        """From now on, when there has been no job for `pause` seconds, call `look`; it says for how long to wait the next time."""

        def begin() -> None:
            self._look, self._pause = look, pause

        self.do(begin)

    @property
    def resting(self) -> bool:
        """Everything given so far is done."""
        return self._given == self._done

    async def idle(self) -> None:
        """Return when everything given so far is done, and the watch is over."""
        if self.resting and self._look is None:
            return
        done = trio.Event()

        def end() -> None:
            self._look = self._pause = None
            self.tell(done.set)

        self.do(end)
        await done.wait()

    async def close(self) -> None:
        """End the thread, after what was given before."""
        self._jobs.put(None)
        await trio.to_thread.run_sync(self._thread.join)
