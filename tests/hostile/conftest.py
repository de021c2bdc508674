"""The stage of the hostile tests, and the page that is made of their results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from hostile.rows import ROWS
from hostile.stage import Stage
from scenario.cards import Screens

RESULTS = pytest.StashKey[dict[str, dict[str, str]]]()
"""Name of a row's test function -> name of each of its parametrized tests -> result."""


ON_A_CARD = ("test_a_rings", "test_b_directory", "test_c_geometry", "test_d_lifetime", "test_shared_limits")
"""Modules whose rows also run on a card whose flips the pump serves."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the screens of a row: those of the headless sink, and where the row is about screens also those of a card with the pump."""
    if "screens" in metafunc.fixturenames:
        on_a_card = metafunc.module.__name__.rpartition(".")[2] in ON_A_CARD
        metafunc.parametrize("screens", ["headless", "pump"] if on_a_card else ["headless"])


@pytest.fixture(autouse=True)
def _on_the_daemons_clock(daemons_clock: None) -> None: ...


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screens: Screens) -> AsyncIterator[Stage]:
    """A world in which a good guest flips, for a hostile guest. Afterwards no further file may be open."""
    async with Stage.on(screens, tmp_path, monkeypatch) as stage:
        yield stage


@pytest.fixture
def results(request: pytest.FixtureRequest) -> dict[str, str]:
    """The results of those rows' tests that ran."""
    each = request.config.stash[RESULTS]
    return {name: "**fails**" if "**fails**" in found.values() else "holds" for name, found in each.items()}


def pytest_configure(config: pytest.Config) -> None:
    """Begin with no results."""
    config.stash[RESULTS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the test of the page after those of all rows."""
    items.sort(key=lambda item: item.name == "test_the_page_is_current")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a row's result: it holds when its test, with setup and teardown, has passed."""
    report = yield
    name = getattr(item, "originalname", item.name)
    if name in ROWS:
        results = item.config.stash[RESULTS].setdefault(name, {})
        if not report.passed:
            results[item.name] = "**fails**"
        elif report.when == "setup":  # if a test is run again, its last run counts
            results[item.name] = "holds"
    return report
