"""Time, scheduling and threads of a run, so that a seed makes nearly the same decisions again. (Sets whose order depends on addresses
make a difference now and then: a failure may need some repetitions.)

* Time is virtual: it passes slowly while a task can run, and else jumps to the next deadline. Waits cost nothing, and a busy machine
  changes nothing.
* trio chooses the order of tasks with random numbers of the seed.
* What the daemon gives to worker threads runs in the event loop, later than it was asked for: at a moment that the seed chooses. A thread
  that is slow to begin finds memory unmapped if its owner does not wait for it.
"""

from __future__ import annotations

import contextlib
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar
from unittest.mock import patch

import outcome
import trio
import trio.testing

from displbe.pump.library import ffi
from displbe.pump.native import Copier
from displbe.sinks import copy_thread
from displbe.threads import NoThread

from .pump import LoopPump

__all__ = ["Steps", "Threads", "run", "simulated"]

T = TypeVar("T")
LIMIT: Final = 40
"""trio's own limit of worker threads."""
ENDLESS: Final = 50_000
"""Steps of all tasks without a moment in which all of them wait."""
TURN: Final = 2e-5
"""Seconds that a turn of the loop takes."""


class Threads:
    """The worker threads of the daemon. `fails` says whether the machine cannot start a thread now."""

    def __init__(self, chance: random.Random, fails: Callable[[], bool]) -> None:
        self.chance = chance
        self.running = 0
        self._fails = fails
        self._limiter = trio.CapacityLimiter(LIMIT)

    async def rest(self) -> None:
        """Let other tasks run for a while: most often for a few turns of the loop, seldom for 0.2 s."""
        if self.chance.random() < 0.3:
            await trio.sleep(self.chance.choice((0.001, 0.03, 0.1, 0.2)))
        for _ in range(self.chance.choice((0, 1, 3, 12))):
            await trio.lowlevel.checkpoint()

    async def run_sync(
        self,
        function: Callable[..., T],
        *arguments: Any,
        thread_name: str | None = None,
        abandon_on_cancel: bool = False,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        """trio.to_thread.run_sync. Raises RuntimeError when no thread can be started."""
        await trio.lowlevel.checkpoint_if_cancelled()
        limiter = limiter or self._limiter
        borrower = object()
        await limiter.acquire_on_behalf_of(borrower)
        if self._fails():
            limiter.release_on_behalf_of(borrower)
            raise RuntimeError("can't start new thread")
        done = trio.Event()
        results: list[outcome.Outcome[T]] = []

        async def work() -> None:
            self.running += 1
            try:
                await self.rest()
                results.append(outcome.capture(function, *arguments))
                await self.rest()
            finally:
                self.running -= 1
                limiter.release_on_behalf_of(borrower)
                done.set()

        trio.lowlevel.spawn_system_task(work)
        with trio.CancelScope(shield=not abandon_on_cancel):
            await done.wait()
        return results[0].unwrap()


class _Jobs(queue.SimpleQueue["Callable[[], None] | None"]):
    """The jobs of a copying thread; its task waits for `wanted`."""

    def __init__(self) -> None:
        self.wanted = trio.Event()

    def put(self, item: Callable[[], None] | None, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        self.wanted.set()


def _address(copier: Copier) -> int:
    return int(ffi.cast("uintptr_t", copier.handle))


class CopyThread(copy_thread.CopyThread):
    """The copying thread of one output, as a task."""

    threads: Threads
    _jobs: _Jobs

    def __init__(self, name: str, pump: LoopPump | None = None) -> None:
        if self.threads._fails():
            raise NoThread
        self.copier = Copier(pump) if pump is not None else None
        self.report = lambda copied: None
        self._pump = pump
        self._looking = threading.Lock()
        self._jobs = _Jobs()
        if pump is not None and self.copier is not None:
            pump.copies[_address(self.copier)] = self._copy
        self._given = self._done = 0
        self._is_ending = False
        self._look: Callable[[], float] | None = None
        self._pause: float | None = None
        self._ended = trio.Event()
        self._loop = trio.lowlevel.current_trio_token()
        trio.lowlevel.spawn_system_task(self._run)

    def _copy(self) -> None:
        """Take note that a steady frame waits to be copied."""
        self._jobs.wanted.set()

    def _copy_steady(self) -> None:
        """Copy the steady frame that waits (CopyThread._next_job)."""
        if self.copier is None or self._pump is None:
            return
        self._pump.is_copying = True
        copied, _ = self.copier.wait(0.0)
        self._pump.is_copying = False
        if copied.frames:
            self.report(copied)

    async def _run(self) -> None:
        self.threads.running += 1
        try:
            while True:
                if self.copier is not None and not self.copier.resting:
                    await self.threads.rest()
                    self._copy_steady()
                    continue
                if self._jobs.empty():
                    self._jobs.wanted = trio.Event()
                    with trio.move_on_after(1e9 if self._pause is None else self._pause) as waiting:
                        await self._jobs.wanted.wait()
                    if waiting.cancelled_caught:
                        self._look_around()
                        continue
                    if self._jobs.empty():  # a steady frame
                        continue
                await self.threads.rest()
                job = self._jobs.get_nowait()
                if job is None:
                    return
                job()
                self._done += 1
                await self.threads.rest()
        finally:
            self.threads.running -= 1
            if self._pump is not None and self.copier is not None:
                del self._pump.copies[_address(self.copier)]
            self._ended.set()

    async def idle(self) -> None:
        """CopyThread.idle"""
        if not self._is_ending:
            await super().idle()
            return
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def close(self) -> None:
        """CopyThread.close"""
        self._is_ending = True
        self._jobs.put(None)
        with trio.CancelScope(shield=True):
            await self._ended.wait()


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks, and notices when they go on without an end."""

    def __init__(self) -> None:
        self.count = 0
        self.circling: Counter[str] = Counter()
        """The tasks whose steps have no end, with their numbers of steps; empty: there are none."""
        self.scope: trio.CancelScope | None = None
        """Cancelled when there are such tasks."""
        self._without_rest = 0
        self._clock: trio.testing.MockClock

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count a step (trio.abc.Instrument)."""
        self.count += 1
        self._without_rest += 1
        if self._without_rest > ENDLESS:
            self.circling[_place(task)] += 1
            if self._without_rest == ENDLESS + 1000 and self.scope is not None:
                self.scope.cancel()

    def begin(self, clock: trio.testing.MockClock) -> None:
        """Use this clock: each turn of the loop takes a little of its time, and when all tasks wait, the steps begin anew."""
        self._clock = clock
        jump = clock._autojump

        def jumped() -> None:
            self._without_rest = 0
            jump()

        clock._autojump = jumped  # type: ignore[method-assign]

    def after_io_wait(self, timeout: float) -> None:
        """Let time pass (trio.abc.Instrument)."""
        self._clock.jump(TURN)


def _place(task: trio.lowlevel.Task) -> str:
    """Return where a task is: its name, and displbe's lines that led there."""
    coroutine: Any = task.coro
    lines = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is not None and "/displbe/" in frame.f_code.co_filename:
            lines.append(f"{frame.f_code.co_filename.rpartition('/displbe/')[2]}:{frame.f_lineno}")
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return f"{task.name}: {' > '.join(lines[-6:])}"


class ThreadTime:
    """The module `time` for copying threads that wait for a screen: `vblank` is called while they sleep."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, vblank: Callable[[], None]) -> None:
        self._vblank = vblank
        self._slept = 0.0

    def monotonic(self) -> float:
        """time.monotonic"""
        return trio.current_time() + self._slept

    def sleep(self, seconds: float) -> None:
        """time.sleep"""
        self._slept += seconds
        self._vblank()


@contextlib.contextmanager
def simulated(threads: Threads, vblank: Callable[[], None]) -> Iterator[None]:
    """Replace the daemon's threads while the block lasts. A thread that waits for a card calls `vblank`."""

    class Copying(CopyThread):
        pass

    Copying.threads = threads
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch("trio.to_thread.run_sync", threads.run_sync))
        real = copy_thread.CopyThread
        for name, module in list(sys.modules.items()):
            if name.startswith("displbe.sinks") and getattr(module, "CopyThread", None) is real:
                stack.enter_context(patch.object(module, "CopyThread", Copying))
        stack.enter_context(patch("displbe.sinks.drm.copied_scanout.time", ThreadTime(vblank)))
        yield


def run(main: Callable[[], Awaitable[T]], seed: int, steps: Steps) -> T:
    """trio.run, with virtual time and the seed's order of tasks."""
    with patch("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True):
        trio._core._run._r.seed(seed)
        clock = trio.testing.MockClock(autojump_threshold=0)
        steps.begin(clock)
        return trio.run(main, clock=clock, instruments=[steps])
