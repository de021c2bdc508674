"""Hypothesis without deadlines: a loaded machine is slow, not wrong. And the watch over displbe's memory."""

from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings
from logs import as_in_tests
from memory_watch import MemoryWatch, watched

from displbe.ops.lag import LoopLag
from displbe.sinks import window_queue

settings.register_profile("displbe", deadline=None)
# For `make mutants`: that a test fails is enough, the smallest example takes minutes. And it fails each time, or never.
settings.register_profile("mutants", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("displbe")
as_in_tests()


@pytest.fixture
def no_window_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the window of a removed connector close at once, as if its guest had not come back in time."""
    monkeypatch.setattr(window_queue, "KEPT", 0.0)


@pytest.fixture
def daemons_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops run on the daemon's own clock, which serves files and alarms itself."""
    monkeypatch.setattr("trio._core._run.SystemClock", LoopLag)


@pytest.fixture(autouse=True)
def memory_watch() -> Iterator[MemoryWatch]:
    """Let unmapped memory trap, and find views that outlive their block and heavy calls in the event loop, in every test."""
    with watched() as watch:
        yield watch
    assert watch.violations == []
