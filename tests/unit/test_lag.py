"""The loop's lag: every turn is measured, whenever the lag is read."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.lowlevel

from displbe.ops import lag
from displbe.ops.lag import LoopLag
from displbe.readiness import Alarm


def run(measured: LoopLag, body: Callable[[], Awaitable[None]]) -> None:
    """Run a body in a loop of its own, whose lag is measured."""
    trio.run(body, clock=measured)


def test_one_long_turn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long turn is reported, whenever the lag is read, until it is a minute old."""
    monkeypatch.setattr(lag, "PERIOD", 0.5)
    monkeypatch.setattr(lag, "MEMORY", 1.0)
    measured = LoopLag()
    assert measured.worst() == 0

    async def body() -> None:
        await trio.sleep(0.02)
        time.sleep(0.1)  # noqa: ASYNC251
        await trio.sleep(0.02)
        assert measured.worst() >= 0.1
        with trio.fail_after(30):
            while measured.worst() >= 0.1:
                await trio.sleep(0.1)

    run(measured, body)


def test_a_long_turn_is_forgotten_by_a_loop_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing wakes the loop to forget: the lag is a minute's also when nothing has happened since."""
    monkeypatch.setattr(lag, "PERIOD", 0.1)
    monkeypatch.setattr(lag, "MEMORY", 0.2)
    measured = LoopLag()

    async def body() -> None:
        await trio.sleep(0.01)
        time.sleep(0.1)  # noqa: ASYNC251
        await trio.sleep(0.01)
        assert measured.worst() >= 0.1
        time.sleep(0.5)  # noqa: ASYNC251
        assert measured.worst() == 0

    run(measured, body)


def test_waiting_is_not_being_late() -> None:
    measured = LoopLag()

    async def body() -> None:
        await trio.sleep(0.01)
        turns = measured.worst()
        await trio.sleep(2 * turns + 0.3)
        assert measured.worst() < 2 * turns + 0.3

    run(measured, body)


@pytest.mark.parametrize("asks", [False, True], ids=["silent", "asking for the time"])
def test_turns_without_a_pause_are_turns(*, asks: bool) -> None:
    """A task that is always ready keeps the loop from sleeping, not from looking for events."""
    measured = LoopLag()

    async def body() -> None:
        await trio.lowlevel.checkpoint()
        for _ in range(100):
            time.sleep(0.005)  # noqa: ASYNC251
            if asks:
                trio.current_time()
            await trio.lowlevel.checkpoint()
        await trio.sleep(0.001)

    run(measured, body)
    assert 0.005 <= measured.worst() < 0.3


@pytest.mark.parametrize("serves", [False, True], ids=["a task's deadline", "an alarm"])
def test_a_time_that_is_past_when_it_is_set_is_no_lag(*, serves: bool) -> None:
    """As of a flip that began long ago, when the clock of late flips starts again."""
    measured = LoopLag()

    async def body() -> None:
        alarm = Alarm()
        async with trio.open_nursery() as nursery:
            if serves:
                nursery.start_soon(alarm.run, lambda: float("inf"))
            with trio.CancelScope() as scope:

                async def set_both() -> None:
                    alarm.set(trio.current_time() - 100)
                    await trio.sleep(0.01)
                    scope.deadline = trio.current_time() - 100

                nursery.start_soon(set_both)
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    run(measured, body)
    assert measured.worst() < 50


def test_a_late_wake_up_is_seen() -> None:
    """The loop wakes up too late for a deadline, as when the machine has no time for it."""
    measured = LoopLag()

    async def body() -> None:
        await trio.sleep(0.01)
        measured._deadline -= 0.2
        measured._is_waiting = True
        trio.current_time()

    run(measured, body)
    assert measured.worst() >= 0.2


def test_a_late_wake_up_after_a_pause_is_seen_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if an earlier period had a longer lag, which is forgotten first."""
    monkeypatch.setattr(lag, "PERIOD", 0.05)
    monkeypatch.setattr(lag, "MEMORY", 1.0)
    measured = LoopLag()

    async def body() -> None:
        await trio.sleep(0.01)
        time.sleep(0.4)  # noqa: ASYNC251
        await trio.sleep(0.7)
        measured._deadline -= 0.2
        measured._is_waiting = True
        trio.current_time()
        await trio.sleep(0.6)
        assert 0.2 <= measured.worst() < 0.4

    run(measured, body)
