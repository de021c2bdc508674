"""The world of a scenario."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
from scenario.cards import SCREENS, Screens, world_on
from scenario.world import World

ON_A_CARD: Final = {
    "test_borrowed_memory",
    "test_flips",
    "test_host",
    "test_isolation",
    "test_lifecycle",
    "test_operator",
    "test_options",
    "test_pictures",
    "test_refusals",
    "test_reload",
    "test_requests",
}
"""Modules whose scenarios also run on a card, with the pump and without it, except those marked `headless`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the screens of a scenario."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "screens" in metafunc.fixturenames and not any(mark.args[0] == "screens" for mark in marks):
        on_a_card = metafunc.module.__name__.rpartition(".")[2] in ON_A_CARD
        is_marked = metafunc.definition.get_closest_marker("headless") is not None
        metafunc.parametrize("screens", SCREENS if on_a_card and not is_marked else ["headless"])


@pytest.fixture(autouse=True)
def _on_the_daemons_clock(daemons_clock: None) -> None: ...


@pytest.fixture
async def world(screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A simulated Xen with a daemon. At the end, no resource may be held and no further file be open. On a card with the pump, the pump
    must have served flips, if there were some.
    """
    async with world_on(screens, tmp_path, monkeypatch) as world:
        yield world
