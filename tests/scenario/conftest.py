"""The worlds of scenarios."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scenario.cards import SCREENS, Screens, world_on
from scenario.world import World, descriptors


@pytest.fixture(params=SCREENS)
def screens(request: pytest.FixtureRequest) -> Screens:
    """The guests' screens in this test: those of the headless sink, or of a card, with the pump and without it."""
    found: Screens = request.param
    return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A simulated Xen with a daemon. At the end, no resource may be held and no further file be open."""
    before = descriptors()
    async with World.running(tmp_path) as world:
        yield world
    assert descriptors() == before


@pytest.fixture
async def any_world(screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The same on all kinds of screens. On a card with the pump, the pump must have served flips, if there were some."""
    async with world_on(screens, tmp_path, monkeypatch) as world:
        yield world
