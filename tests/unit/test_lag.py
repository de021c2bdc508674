"""The loop's lag: every turn is measured, also one between two samples."""

from __future__ import annotations

import time

import pytest
import trio

from displbe.ops import lag
from displbe.ops.lag import LoopLag


async def test_one_long_turn_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long turn is reported, whenever the lag is read, until it is a minute old."""
    monkeypatch.setattr(lag, "PERIOD", 0.5)
    monkeypatch.setattr(lag, "MEMORY", 1.0)
    measured = LoopLag()
    assert measured.worst() == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.run)
        await trio.sleep(0.02)
        time.sleep(0.1)  # noqa: ASYNC251
        await trio.sleep(0.02)
        assert measured.worst() >= 0.1
        with trio.fail_after(30):
            while measured.worst() >= 0.1:
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


async def test_waiting_is_not_being_late() -> None:
    measured = LoopLag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.run)
        await trio.sleep(0.01)
        turns = measured.worst()
        await trio.sleep(2 * turns + 0.3)
        assert measured.worst() < 2 * turns + 0.3
        nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint()


async def test_it_is_measured_no_more() -> None:
    measured = LoopLag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(measured.run)
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    with pytest.raises(KeyError):
        trio.lowlevel.remove_instrument(measured)
