"""The loop of the sinks' tests."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _on_the_daemons_clock(daemons_clock: None) -> None: ...
