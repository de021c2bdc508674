"""Served files and alarms, on the daemon's clock, which serves them itself, and on trio's own, on which tasks wait."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from displbe import readiness
from displbe.ops.lag import LoopLag
from displbe.readiness import Alarm, ServingClock, serve

CLOCKS: dict[str, type[ServingClock] | None] = {"served": LoopLag, "waited for": None}


@pytest.fixture(params=CLOCKS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Return a function that runs a body in a loop, for 5 s at most."""

    def in_loop(body: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with trio.fail_after(5):
                await body()

        made = CLOCKS[request.param]
        clock = None if made is None else made()
        trio.run(limited, clock=clock)
        if clock is not None:
            assert clock.files is not None
            assert not clock.files.served
            assert not clock.files.alarms

    return in_loop


Run = Callable[[Callable[[], Awaitable[None]]], None]


def reader(fd: int, seen: list[bytes]) -> bool:
    seen.append(os.read(fd, 100))
    return False


def test_the_daemons_clock_serves() -> None:
    """With the installed trio, no task waits."""

    async def body() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, ServingClock)
        assert clock.files is not None

    trio.run(body, clock=LoopLag())


def test_another_trio(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    """A trio whose loop is made otherwise is slower, no more."""
    monkeypatch.setattr(readiness, "_attribute", lambda *_: None)

    async def body() -> None:
        def ready() -> bool:
            raise LookupError(os.read(pipe[0], 1))

        os.write(pipe[1], b"x")
        with pytest.raises(LookupError):
            await serve(pipe[0], ready)

    trio.run(body, clock=LoopLag())


def test_a_readable_file_is_served_until_cancelled(run: Run, pipe: tuple[int, int]) -> None:
    seen: list[bytes] = []

    def ready() -> bool:
        seen.append(os.read(pipe[0], 100))
        return False

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, pipe[0], ready)
            for count in range(3):
                os.write(pipe[1], b"%d" % count)
                while len(seen) == count:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        os.write(pipe[1], b"unseen")
        await trio.sleep(0.02)

    run(body)
    assert seen == [b"0", b"1", b"2"]


def test_work_left_takes_turns_with_tasks(run: Run, pipe: tuple[int, int]) -> None:
    """A function with work left is called in each turn, also when its file is not readable any more; tasks run in between."""
    calls = turns = 0

    def ready() -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            os.read(pipe[0], 100)
        return calls < 50

    async def body() -> None:
        nonlocal turns
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, pipe[0], ready)
            os.write(pipe[1], b"x")
            while calls < 50:
                turns += 1
                await trio.lowlevel.checkpoint()
            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    run(body)
    assert calls == 50
    assert turns > 10


def test_files_are_served_beside_tasks_that_never_wait(run: Run, pipe: tuple[int, int]) -> None:
    seen = trio.Event()

    def ready() -> bool:
        os.read(pipe[0], 100)
        seen.set()
        return False

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, pipe[0], ready)
            await trio.sleep(0.01)
            os.write(pipe[1], b"x")
            while not seen.is_set():
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    run(body)


def test_tasks_run_beside_files_that_are_always_readable(run: Run, pipe: tuple[int, int]) -> None:
    """Deadlines, other threads and files of trio's own are not forgotten while a served file has always something to read."""
    begun = time.monotonic()
    other = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            os.write(pipe[1], b"x")
            nursery.start_soon(serve, pipe[0], lambda: False)
            await trio.sleep(0.05)
            assert await trio.to_thread.run_sync(lambda: 7) == 7
            os.write(other[1], b"x")
            await trio.lowlevel.wait_readable(other[0])
            nursery.cancel_scope.cancel()

    run(body)
    for end in other:
        os.close(end)
    assert time.monotonic() - begun >= 0.05


def test_a_loop_whose_tasks_all_wait_is_idle(run: Run, pipe: tuple[int, int]) -> None:
    """trio.testing.wait_all_tasks_blocked returns, though a file is served and an alarm set; not before what is ready has been done."""
    seen: list[bytes] = []

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            alarm = Alarm()
            alarm.set(trio.current_time() + 60)
            nursery.start_soon(alarm.run, lambda: 0.0)
            nursery.start_soon(serve, pipe[0], lambda: reader(pipe[0], seen))
            await trio.testing.wait_all_tasks_blocked(0.001)
            os.write(pipe[1], b"x")
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert seen == [b"x"]
            nursery.cancel_scope.cancel()

    run(body)


def test_an_exception_is_raised_in_the_task_that_serves(run: Run, pipe: tuple[int, int]) -> None:
    def ready() -> bool:
        raise LookupError(os.read(pipe[0], 100))

    async def body() -> None:
        os.write(pipe[1], b"x")
        with pytest.raises(LookupError, match="x"):
            await serve(pipe[0], ready)
        os.write(pipe[1], b"y")
        with pytest.raises(LookupError, match="y"):  # the file is free again
            await serve(pipe[0], ready)

    run(body)


def test_a_function_may_start_tasks_and_end_others(run: Run, pipe: tuple[int, int]) -> None:
    done: list[str] = []

    async def task() -> None:
        done.append("started")

    async def body() -> None:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            def ready() -> bool:
                os.read(pipe[0], 100)
                nursery.start_soon(task)
                scope.cancel()
                return False

            nursery.start_soon(serve, pipe[0], ready)
            os.write(pipe[1], b"x")
            with scope:
                await trio.sleep_forever()
            while not done:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    run(body)
    assert done == ["started"]


def test_a_file_that_was_closed_and_one_that_got_its_number() -> None:
    """The end of the closed file's task ends nothing else."""
    seen: list[bytes] = []

    async def body() -> None:
        old, new, other = trio.CancelScope(), trio.CancelScope(), os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        number = os.dup(other[0])

        async def task(scope: trio.CancelScope, ready: Callable[[], bool]) -> None:
            with scope:
                await serve(number, ready)

        async with trio.open_nursery() as nursery:
            closed = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            os.dup2(closed[0], number, inheritable=False)
            os.close(closed[0])
            nursery.start_soon(task, old, lambda: False)
            await trio.sleep(0.01)
            os.dup2(other[0], number, inheritable=False)  # closes the other pipe
            nursery.start_soon(task, new, lambda: reader(number, seen))
            await trio.sleep(0.01)
            old.cancel()
            await trio.sleep(0.01)
            os.write(other[1], b"x")
            await trio.sleep(0.01)
            new.cancel()
        for end in (number, *other, closed[1]):
            os.close(end)

    trio.run(body, clock=LoopLag())
    assert seen == [b"x"]


def test_no_epoll_file_is_left_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    """A file without readiness, and a kernel that allows no further watch, cost the caller an OSError, and later callers nothing."""
    seen: list[bytes] = []

    class Full:
        def register(self, fd: int, events: int) -> None:
            raise OSError(errno.ENOSPC, "the user has too many watches")

    async def body() -> None:
        with (tmp_path / "file").open("w") as file, pytest.raises(PermissionError):
            await serve(file.fileno(), lambda: False)
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, ServingClock)
        assert clock.files is not None
        assert not clock.files.is_used
        with monkeypatch.context() as patch:
            patch.setattr("displbe.readiness.select.epoll", Full)
            with pytest.raises(OSError, match="watches"):
                await serve(pipe[0], lambda: False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, pipe[0], lambda: reader(pipe[0], seen))
            os.write(pipe[1], b"x")
            await trio.sleep(0.02)
            nursery.cancel_scope.cancel()

    trio.run(body, clock=LoopLag())
    assert seen == [b"x"]


def test_a_cancelled_task_serves_nothing(run: Run, pipe: tuple[int, int]) -> None:
    async def body() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await serve(pipe[0], lambda: False)
        with trio.CancelScope() as scope:
            scope.cancel()
            await Alarm().run(lambda: 0.0)
        assert scope.cancelled_caught

    run(body)


@pytest.mark.parametrize("fails", [False, True])
def test_a_function_that_ends_its_own_task(run: Run, pipe: tuple[int, int], *, fails: bool) -> None:
    """A task that has been cancelled by its own function ends as cancelled, whatever the function does then."""

    async def body() -> None:
        def end() -> float:
            scope.cancel()
            if fails:
                raise LookupError
            return 1.0

        os.write(pipe[1], b"x")
        with suppress(LookupError), trio.CancelScope() as scope:
            await serve(pipe[0], lambda: bool(end()))
        with suppress(LookupError), trio.CancelScope() as scope:
            alarm = Alarm()
            alarm.set(trio.current_time())
            await alarm.run(end)
        await trio.sleep(0.01)

    run(body)


def test_an_alarm_that_another_has_ended_does_not_ring(run: Run) -> None:
    """Two alarms ring at the same time. The first one's function cancels the other's task."""
    rung: list[int] = []

    async def body() -> None:
        scopes = [trio.CancelScope(), trio.CancelScope()]
        when = trio.current_time() + 0.01

        async def task(number: int) -> None:
            def ring() -> float:
                rung.append(number)
                scopes[1 - number].cancel()
                return float("inf")

            alarm = Alarm()
            alarm.set(when)
            with scopes[number]:
                await alarm.run(ring)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(task, 0)
            nursery.start_soon(task, 1)
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    run(body)
    assert len(rung) == 1


def test_an_alarm_rings_at_its_times(run: Run) -> None:
    """It rings at the time that was set last, never earlier; then at the time that its function returns, or has set, if that is earlier."""
    rung: list[float] = []

    async def body() -> None:
        alarm = Alarm()
        began = trio.current_time()

        def ring() -> float:
            rung.append(trio.current_time() - began)
            if len(rung) == 2:
                alarm.set(began + 0.06)
            return began + (0.04 if len(rung) == 1 else 60.0)

        async with trio.open_nursery() as nursery:
            alarm.set(began + 0.001)
            nursery.start_soon(alarm.run, ring)
            alarm.set(began + 60)
            await trio.sleep(0.01)
            alarm.set(began + 0.02)
            while len(rung) < 3:
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()

    run(body)
    assert len(rung) == 3
    assert all(late >= wanted for late, wanted in zip(rung, (0.02, 0.04, 0.06), strict=True))


def test_an_alarm_wakes_a_loop_without_other_work(run: Run) -> None:
    done = trio.Event()

    def ring() -> float:
        done.set()
        return float("inf")

    async def body() -> None:
        alarm = Alarm()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarm.run, ring)
            await trio.sleep(0.01)
            alarm.set(trio.current_time() + 0.02)
            await done.wait()
            nursery.cancel_scope.cancel()

    run(body)


def test_an_alarms_exception_is_raised_in_its_task(run: Run) -> None:
    async def body() -> None:
        alarm = Alarm()
        alarm.set(trio.current_time())
        with pytest.raises(ZeroDivisionError):
            await alarm.run(lambda: 1 / 0)

    run(body)


@given(
    st.lists(st.tuples(st.sampled_from(["write", "task", "work", "thread", "sleep"]), st.integers(0, 3)), max_size=20)
)
def test_both_clocks_serve_the_same(steps: list[tuple[str, int]]) -> None:
    """Whatever else the loop does, each byte that is written is read, by the function of its own file, in order."""

    def played(clock: trio.abc.Clock | None) -> list[bytes]:
        pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(4)]
        read = [b""] * 4
        wrote = [b""] * 4
        again = [0] * 4

        def ready(number: int) -> bool:
            try:
                read[number] += os.read(pipes[number][0], 1)
            except BlockingIOError:
                again[number] = 0
            again[number] -= 1
            return again[number] > 0

        async def body() -> None:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    for number in range(4):
                        nursery.start_soon(serve, pipes[number][0], lambda number=number: ready(number))
                    for position, (step, number) in enumerate(steps):
                        if step == "write":
                            wrote[number] += bytes([position])
                            os.write(pipes[number][1], bytes([position]))
                        elif step == "work":
                            again[number] = 3
                        elif step == "task":
                            nursery.start_soon(trio.sleep, 0)
                        elif step == "thread":
                            await trio.to_thread.run_sync(int)
                        else:
                            await trio.lowlevel.checkpoint()
                    while read != wrote:
                        await trio.sleep(0.0005)
                    nursery.cancel_scope.cancel()

        trio.run(body, clock=clock)
        for ends in pipes:
            for end in ends:
                os.close(end)
        return read

    assert played(LoopLag()) == played(None)
