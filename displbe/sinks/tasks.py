"""The background tasks of a sink or of one of its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

__all__ = ["Tasks"]


class Tasks:
    """A nursery whose tasks fail alone: an exception in one is logged and ends that task only.

    Tasks that are started before `run` begin with it; those that are started after it has ended do not run.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._nursery: trio.Nursery | None = None
        self._early: list[tuple[Callable[..., Awaitable[None]], tuple[object, ...]]] = []
        self.ended = False
        """Whether `run` has ended. No task is started any more then."""

    def start_soon(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Start a task."""
        if self._nursery is not None:
            self._nursery.start_soon(self._guarded, work, arguments)
        elif not self.ended:
            self._early.append((work, arguments))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the tasks until cancelled."""
        async with trio.open_nursery() as self._nursery:
            try:
                early, self._early = self._early, []
                for work, arguments in early:
                    self.start_soon(work, *arguments)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery, self.ended = None, True

    async def _guarded(self, work: Callable[..., Awaitable[None]], arguments: tuple[object, ...]) -> None:
        try:
            await work(*arguments)
        except Exception:
            self._log.exception("background task failed")
