"""The world of a scenario."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scenario.world import World, descriptors


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A simulated Xen with a daemon. At the end, no resource may be held and no further file be open."""
    before = descriptors()
    async with World.running(tmp_path) as world:
        yield world
    assert descriptors() == before
