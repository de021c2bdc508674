"""A background task of a sink that fails does not end the others."""

from __future__ import annotations

import structlog
import structlog.testing
import trio

from displbe.sinks.tasks import Tasks


async def test_a_task_that_fails_ends_alone(nursery: trio.Nursery) -> None:
    done: list[str] = []

    async def work(name: str) -> None:
        await trio.lowlevel.checkpoint()
        if name == "bad":
            raise RuntimeError("a mistake")
        done.append(name)

    with structlog.testing.capture_logs() as lines:
        tasks = Tasks(structlog.get_logger())
        tasks.start_soon(work, "early")
        await nursery.start(tasks.run)
        tasks.start_soon(work, "bad")
        tasks.start_soon(work, "good")
        await trio.testing.wait_all_tasks_blocked()
    assert sorted(done) == ["early", "good"]
    assert [line["event"] for line in lines] == ["background task failed"]


async def test_nothing_starts_after_the_end() -> None:
    tasks = Tasks(structlog.get_logger())
    started: list[bool] = []

    async def work() -> None:
        started.append(True)

    async with trio.open_nursery() as nursery:
        await nursery.start(tasks.run)
        nursery.cancel_scope.cancel()
    tasks.start_soon(work)
    await trio.testing.wait_all_tasks_blocked()
    assert tasks.ended
    assert started == []
