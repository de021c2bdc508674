"""Scenarios on a card whose steady flips the pump serves, and the same without the pump."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import pytest
from scenario.cards import card_machine
from scenario.world import World, descriptors, flip_on, spec, until
from unit.drm_model import Board

from displbe.sinks.drm.output import DrmOutput

CONNECTOR, OTHER = "Virtual-1", "Virtual-2"
REFRESH = 500.0
Pump = Literal["auto", "off"]
Running = Callable[[Path, bool], AbstractAsyncContextManager[tuple[World, Board]]]


@pytest.fixture(params=["auto", "off"])
def pump(request: pytest.FixtureRequest) -> Pump:
    """Whether the pump serves steady flips."""
    return "auto" if request.param == "auto" else "off"


@pytest.fixture(params=["zero copy", "copy"])
async def machine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pump: Pump
) -> AsyncIterator[tuple[World, Board]]:
    """A machine with a card of two connectors."""
    board = Board(connectors=2)
    before = descriptors()
    async with (
        card_machine(tmp_path, monkeypatch, board, REFRESH, dmabufs=request.param == "zero copy"),
        World.running(tmp_path, sink="drm", commit=board.commit, pump=pump) as world,
    ):
        yield world, board
    del world
    assert descriptors() == before


def output(world: World, name: str = CONNECTOR) -> DrmOutput:
    """Return a guest's output."""
    found = world.daemon.sink.claimed(name)
    assert isinstance(found, DrmOutput)
    return found


def served_by_pump(board: Board, pump: Pump) -> bool:
    """Check whether flips were served by what should serve them."""
    return board.pumped > 0 if pump == "auto" else board.pumped == 0


async def test_steady_flips(machine: tuple[World, Board], pump: Pump) -> None:
    world, board = machine
    async with world.guest(1, spec(CONNECTOR)) as guest:
        async with flip_on(guest) as times:
            await until(lambda: len(times) >= 200)
            if pump == "auto":
                assert board.pumped >= 150
        assert served_by_pump(board, pump)
        status = (await world.device(1).service.status()).connectors[0]
        assert status.flips.shown == len(guest.display.connectors[0].flips_done)
