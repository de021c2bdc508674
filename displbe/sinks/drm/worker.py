"""Work on a card in worker threads, because drivers wait for their hardware."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from displbe.pump.native import Pump, PumpError
from displbe.sinks.copy_thread import CopyThread
from displbe.threads import NoThread, run_in_thread

from .errors import NoResources

__all__ = ["in_worker", "start_copy_thread"]

T = TypeVar("T")


async def in_worker(work: Callable[..., T], *arguments: object) -> T:
    """Call `work` in a worker thread and return its result. Raises NoResources if no thread can be started, and what `work` raises."""
    try:
        return await run_in_thread(work, *arguments)
    except OSError as error:
        raise NoResources(error) from error


def start_copy_thread(name: str, pump: Pump | None) -> CopyThread:
    """Return a new copying thread. Raises NoResources."""
    try:
        return CopyThread(name, pump)
    except (NoThread, PumpError) as error:
        raise NoResources(error) from error
