"""A thread that copies frames and commits them, so that a flip in copy mode does not wake the event loop.

A trio worker thread would wake the loop again for the commit, which costs more than copying a small frame. This thread takes jobs from a
queue and calls the loop only when a job fails. Between jobs it looks regularly whether the guest has drawn without flipping. That does not
wake the loop either.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import structlog
import trio

from displbe.pump.native import Copier, Pump
from displbe.threads import run_in_thread_or_here, start_thread

__all__ = ["CopyThread"]

_log = structlog.get_logger("displbe.copy_thread")
Job = Callable[[], None]


class CopyThread:
    """The copying thread of one output. Raises NoThread, PumpError. Methods are called in the event loop unless they say otherwise.

    With a pump, steady frames are copied by a `copier` in this thread, without the interpreter: after all jobs that were given before
    them, and before all that are given after them. `report` is called in the thread with what it has copied, before the next job.
    """

    def __init__(self, name: str, pump: Pump | None = None) -> None:
        self.copier = Copier(pump) if pump is not None else None
        self.report: Callable[[Any], None] = lambda copied: None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._given = 0
        self._done = 0
        self._is_ending = False
        """Whether `close` has been called: the thread does no more jobs than those given before."""
        self._look: Callable[[], float] | None = None
        self._pause: float | None = None
        self._looking = threading.Lock()
        """Held while `_look` is called."""
        self._loop = trio.lowlevel.current_trio_token()
        self._thread = start_thread(f"copy {name}", self._work)

    def _work(self) -> None:
        while True:
            try:
                job = self._next_job()
            except queue.Empty:
                self._try(self._look_around)
                continue
            if job is None:
                return
            self._try(job)
            self._done += 1

    def _next_job(self) -> Job | None:
        """Wait for the next job, and copy steady frames meanwhile. Raises queue.Empty when there was neither for the pause."""
        if self.copier is None:
            return self._jobs.get(timeout=self._pause)
        while True:
            has_timed_out = self._copy_frames(self.copier, self._pause)
            with suppress(queue.Empty):
                job = self._jobs.get_nowait()
                # The pump may have handed over a frame before this job was given, and after `wait` had looked.
                if not self.copier.resting:
                    self._copy_frames(self.copier, 0.0)
                if not self._jobs.empty():
                    self.copier.poke()  # a steady frame may have come between this job and the next one
                return job
            if has_timed_out:
                raise queue.Empty

    def _copy_frames(self, copier: Copier, seconds: float | None) -> bool:
        """Copy steady frames until there is a job, or none has come for so many seconds, and report them. True: the time has passed."""
        copied, has_timed_out = copier.wait(seconds)
        if copied.frames:
            self._try(partial(self.report, copied))
        return has_timed_out

    def _put(self, job: Job | None) -> None:
        self._jobs.put(job)
        if self.copier is not None:
            self.copier.poke()

    def _try(self, job: Job) -> None:
        """Run a job. An exception must not end the thread: all later flips would wait for it."""
        try:
            job()
        except Exception:
            self._pause = None
            _log.exception("copying a frame failed")

    def _look_around(self) -> None:
        with self._looking:
            if self._look is not None:
                self._pause = self._look()

    def do(self, job: Job) -> None:
        """Run a job in the thread, after all jobs given before. The job must not raise; it reports to the loop with `tell`."""
        self._given += 1
        self._put(job)

    def tell(self, call: Callable[[], None]) -> None:
        """Call `call` in the event loop. Jobs use this method, in the thread."""
        self._loop.run_sync_soon(call)

    def watch(self, look: Callable[[], float], pause: float) -> None:
        """From now on, call `look` in the thread when there has been no job for `pause` seconds. `look` returns the next pause."""

        def begin() -> None:
            self._look, self._pause = look, pause

        self.do(begin)

    @contextmanager
    def paused(self) -> Iterator[bool]:
        """Keep the thread from a look during the block. The value says whether it rests; it does not while it looks."""
        is_held = self._looking.acquire(blocking=False)
        try:
            yield is_held and self.resting
        finally:
            if is_held:
                self._looking.release()

    @property
    def resting(self) -> bool:
        """Whether all jobs given so far are done, and all steady frames are copied."""
        return self._given == self._done and (self.copier is None or self.copier.resting)

    async def idle(self) -> None:
        """End the watch. Return when all jobs given so far are done."""
        if self._is_ending:
            await run_in_thread_or_here(self._thread.join)
            return
        if self.resting and self._look is None:
            return
        done = trio.Event()

        def end() -> None:
            self._look = self._pause = None
            self.tell(done.set)

        self.do(end)
        await done.wait()

    async def close(self) -> None:
        """End the thread after all jobs given so far."""
        self._is_ending = True
        self._put(None)
        await run_in_thread_or_here(self._thread.join)
