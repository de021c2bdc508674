"""The stage of the hostile tests, and the page that is made of their results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from hostile.rows import ROWS
from hostile.stage import Stage
from scenario.world import descriptors

RESULTS = pytest.StashKey[dict[str, dict[str, str]]]()
"""For each row, by the name of its test function: the result of each of its parametrized tests, by name."""


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """A world with a good guest that flips, for a hostile one. Afterwards no further file may be open."""
    before = descriptors()
    async with Stage.set(tmp_path) as stage:
        yield stage
    assert descriptors() == before


@pytest.fixture
def results(request: pytest.FixtureRequest) -> dict[str, str]:
    """The results of the rows' tests that ran."""
    each = request.config.stash[RESULTS]
    return {name: "**fails**" if "**fails**" in found.values() else "holds" for name, found in each.items()}


def pytest_configure(config: pytest.Config) -> None:
    """The results of this run."""
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
        elif report.when == "setup":  # of a test that is run again, the last try counts
            results[item.name] = "holds"
    return report
