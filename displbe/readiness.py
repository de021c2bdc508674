"""What happens at every flip: a function is called when a file is readable, or at a time, and no task wakes up.

A task that waits costs sixty calls each time for a file, and a hundred for a time: trio makes a scope, reschedules the task, runs it, and
registers the file anew. `serve` leaves the file registered, and an `Alarm` is a number. The loop's clock (`ServingClock`) waits for both,
and for the loop's own files, where the loop asks it how long it may sleep. It calls the functions there, between two turns of the loop.

With another clock, or a version of trio that has no epoll file, a task waits.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NamedTuple, NoReturn

import outcome
import trio

__all__ = ["LOOP", "Alarm", "ReadyFiles", "ServingClock", "serve"]

LONGEST: Final = 86400.0
"""Seconds of the longest wait."""
LOOP: Final = -1
"""Stands for the files of the loop's own."""
Ready = Callable[[], bool]
"""Called when a file is readable. It must not block. True: it has work left, and is called again in the next turn of the loop."""


def _never() -> float:
    return math.inf


class Alarm:
    """Calls a function at a time, until cancelled. The function returns the next time."""

    def __init__(self) -> None:
        self.rings_at = math.inf
        """The next time, in seconds of trio's clock. Set it by `set`."""
        self._sleep: trio.CancelScope | None = None
        """What a waiting task sleeps in; None: no task waits."""
        self._files: ReadyFiles | None = None
        """What calls the function; None: a task."""
        self._ring: Callable[[], float] = _never

    def set(self, when: float) -> None:
        """Ring at this time instead."""
        self.rings_at = when
        if self._files is not None:
            if when < self._files.alarm_at:
                self._files.alarm_at = when
        elif self._sleep is not None:
            self._sleep.deadline = when

    async def run(self, ring: Callable[[], float]) -> NoReturn:
        """Call `ring` at each time, until cancelled. Raises what it raises."""
        self._ring = ring
        files = _files()
        if files is None:
            while True:
                with trio.CancelScope(deadline=self.rings_at) as self._sleep:
                    await trio.sleep_forever()
                self.call()
        await trio.lowlevel.checkpoint_if_cancelled()
        files.add_alarm(self, trio.lowlevel.current_task())
        self._files = files
        self.set(self.rings_at)
        try:
            await _sleep(lambda: files.remove_alarm(self))
        finally:
            self._files = None

    def call(self) -> None:
        """Call the function now. A time that is set meanwhile counts if it is earlier."""
        self.rings_at = math.inf
        self.set(min(self._ring(), self.rings_at))


class _Served(NamedTuple):
    ready: Ready
    task: trio.lowlevel.Task
    """The task that has called `serve`."""


class ReadyFiles:
    """The files that are served in a loop of trio's, whose runner is given."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._loop = runner.io_manager._epoll.fileno()
        """The file in which the loop waits for its own files."""
        self._epoll: select.epoll | None = None
        """Waits for all of them, and for the loop's file. It is open while something is served."""
        self.served: dict[int, _Served] = {}
        self.alarms: dict[Alarm, trio.lowlevel.Task] = {}
        """The alarms, and the tasks that have called `run`."""
        self.alarm_at = math.inf
        """No alarm rings before this time."""
        self.is_used = False
        """Whether there is a file or an alarm to wait for."""
        self.is_calling = False
        """Whether functions run."""
        self._again: list[int] = []
        """Files whose functions have work left."""

    def add(self, fd: int, ready: Ready, task: trio.lowlevel.Task) -> None:
        """Serve a file from now on. Raises OSError if it is served already, or has no readiness."""
        try:
            self._open().register(fd, select.EPOLLIN)
        except OSError:
            self._close_unused()
            raise
        self.served[fd] = _Served(ready, task)

    def remove(self, fd: int, task: trio.lowlevel.Task) -> None:
        """Serve a task's file no more. It may have been closed, and another task may serve another file of the same number."""
        served = self.served.get(fd)
        if served is None or served.task is not task:
            return
        del self.served[fd]
        with suppress(ValueError):
            self._again.remove(fd)
        with suppress(OSError):
            self._open().unregister(fd)
        self._close_unused()

    def add_alarm(self, alarm: Alarm, task: trio.lowlevel.Task) -> None:
        """Let an alarm ring from now on."""
        self._open()
        self.alarms[alarm] = task

    def remove_alarm(self, alarm: Alarm) -> None:
        """Let an alarm ring no more."""
        del self.alarms[alarm]
        self._close_unused()

    def _open(self) -> select.epoll:
        if self._epoll is None:
            epoll = select.epoll()
            epoll.register(self._loop, select.EPOLLIN)  # this may fail: the kernel limits each user's watches
            self._epoll, self.is_used = epoll, True
        return self._epoll

    def _close_unused(self) -> None:
        if self._epoll is not None and not self.served and not self.alarms:
            self._epoll.close()
            self._epoll = None
            self.is_used = False
            self.alarm_at = math.inf
            self._again.clear()

    def wait(self, timeout: float) -> list[int]:
        """Wait until a file is readable, for at most so many seconds. Return the files to be looked at now; LOOP stands for the loop's own.

        Something must be used. While a task is in trio's wait_all_tasks_blocked, this does not wait.
        """
        assert self._epoll is not None
        if self._again or self._runner.waiting_for_idle:
            timeout = 0.0
        found = self._epoll.poll(timeout if 0 < timeout < LONGEST else (0 if timeout <= 0 else LONGEST))
        loop = self._loop
        ready = [LOOP if fd == loop else fd for fd, _ in found]
        if self._again:
            ready = list(dict.fromkeys([LOOP, *self._again, *ready]))
            self._again.clear()
        return ready

    def call(self, files: list[int], now: float) -> None:
        """Call the functions of these files, and of the alarms whose time has come.

        What a function raises is raised in the task that serves its file, or runs the alarm.
        """
        self.is_calling = True
        for fd in files:
            served = self.served.get(fd)
            if served is None:
                continue  # the loop's own, or another function has ended it
            try:
                has_work_left = served.ready()
            except BaseException as error:
                if self.served.get(fd) is served:  # else its task has been cancelled
                    self.remove(fd, served.task)
                    trio.lowlevel.reschedule(served.task, outcome.Error(error))
                continue
            if has_work_left and fd in self.served:
                self._again.append(fd)
        if self.alarm_at <= now:
            self._ring(now)
        self.is_calling = False

    def _ring(self, now: float) -> None:
        self.alarm_at = math.inf  # what rings sets it
        for alarm, task in list(self.alarms.items()):
            if alarm not in self.alarms:
                continue  # another function has ended it
            try:
                if alarm.rings_at <= now:
                    alarm.call()
                else:
                    alarm.set(alarm.rings_at)
            except BaseException as error:
                if alarm in self.alarms:
                    self.remove_alarm(alarm)
                    trio.lowlevel.reschedule(task, outcome.Error(error))

    def is_idle_awaited(self) -> bool:
        """Whether a task is in trio's wait_all_tasks_blocked: the loop then waits for its own files only, for a short time."""
        return bool(self._runner.waiting_for_idle)

    def next_deadline(self) -> float:
        """Return when the loop's next task runs; -inf: now."""
        return -math.inf if self._again or self._runner.runq else self._runner.deadlines.next_deadline()


class ServingClock(trio.abc.Clock):
    """The clock of a loop that serves files."""

    files: ReadyFiles | None = None
    """None: the loop has no epoll file that we know; tasks wait."""

    def start_clock(self) -> None:
        """Begin (trio.abc.Clock)."""
        # trio documents none of these. Without them, displbe is slower.
        runner = _attribute(trio, "_core", "_run", "GLOBAL_RUN_CONTEXT", "runner")
        epoll = _attribute(runner, "io_manager", "_epoll")
        used = "runq", "deadlines", "waiting_for_idle"
        knows = isinstance(epoll, select.epoll) and all(hasattr(runner, name) for name in used)
        self.files = ReadyFiles(runner) if knows else None


def _attribute(thing: object, *names: str) -> Any:
    """Return an attribute of an attribute …; None: there is none."""
    for name in names:
        thing = getattr(thing, name, None)
    return thing


def _files() -> ReadyFiles | None:
    """Return the files of the loop that runs; None: it serves none."""
    clock = trio.lowlevel.current_clock()
    return clock.files if isinstance(clock, ServingClock) else None


async def _sleep(end: Callable[[], None]) -> NoReturn:
    """Sleep until the task is rescheduled with an exception. `end` is called if it is cancelled."""

    def abort(_: Callable[[], NoReturn]) -> trio.lowlevel.Abort:
        end()
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)
    raise AssertionError("rescheduled without an exception")


async def serve(fd: int, ready: Ready) -> NoReturn:
    """Call a function each time that a file is readable, until cancelled. Raises what the function raises.

    The function runs outside of tasks: it may set events, reschedule and start tasks, but open no cancel scope.
    """
    files = _files()
    if files is None:
        while True:
            await trio.lowlevel.wait_readable(fd)
            while ready():
                await trio.lowlevel.checkpoint()
    await trio.lowlevel.checkpoint_if_cancelled()
    task = trio.lowlevel.current_task()
    files.add(fd, ready, task)
    await _sleep(lambda: files.remove(fd, task))
