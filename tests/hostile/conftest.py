"""The stage of the hostile tests, and the page that is made of their results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from hostile.rows import ROWS
from hostile.stage import Stage
from scenario.world import descriptors

RESULTS = pytest.StashKey[dict[str, dict[str, str]]]()
"""Name of a row's test function -> name of each of its parametrized tests -> result."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A world in which a good guest flips, for a hostile guest. Afterwards no further file may be open."""
    before = descriptors()
    async with Stage.set(tmp_path) as stage:
        yield stage
    assert descriptors() == before


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
