"""Starts the daemon's threads. That can fail: the kernel refuses a thread (EAGAIN, clone(2)) when the service has reached TasksMax=, when
its user has reached the limit of processes, or when there is no memory for the stack.

Python reports such a failure as a RuntimeError without a cause. Here it is an OSError, as for files and memory, so that it costs the
operation that needed the thread, and nothing else.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Final, TypeVar

import trio

__all__ = ["DEFAULT_THREADS", "NoThread", "run_in_thread", "run_in_thread_or_here", "start_thread"]

DEFAULT_THREADS: Final = 40
"""Threads that run at the same time for work without a limiter of its own: the default of trio."""

T = TypeVar("T")


class NoThread(OSError):
    """No thread can be started."""

    def __init__(self) -> None:
        super().__init__(
            errno.EAGAIN,
            "no thread can be started: raise TasksMax= in displbe.service, or give this machine more memory",
        )


async def run_in_thread(
    work: Callable[..., T],
    *arguments: object,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Call `work` in a worker thread and return its result. Raises NoThread if no thread can be started, OSError ENOMEM if `work` gets no
    memory, and what `work` raises.
    """
    begun = False

    def call() -> T:
        nonlocal begun
        begun = True
        return work(*arguments)

    name = getattr(work, "__name__", None)
    try:
        return await trio.to_thread.run_sync(
            call, thread_name=name, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )
    except RuntimeError as error:
        if begun:
            raise
        raise NoThread from error
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


async def run_in_thread_or_here(
    work: Callable[..., T], *arguments: object, limiter: trio.CapacityLimiter | None = None
) -> T:
    """Call `work` in a worker thread and return its result; if no thread can be started, call it here.

    For work that gives resources back and must be done, even if the loop has to wait for it.
    """
    try:
        return await run_in_thread(work, *arguments, limiter=limiter)
    except NoThread:
        return work(*arguments)


def start_thread(name: str, work: Callable[..., object], *arguments: object) -> threading.Thread:
    """Start a thread that does not keep the process from ending, and return it. Raises NoThread."""
    thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        raise NoThread from error
    return thread
