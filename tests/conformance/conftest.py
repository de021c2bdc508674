"""Creates the worlds of the suite (world.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from conformance.peer import HostPeer, SimPeer
from conformance.world import HOST, WORLDS, World, descriptors, fitting

from displbe.sim.hypervisor import Xen
from displbe.xen.host import Host
from displbe.xen.port import Ledger

HOME = "data/displbe-conformance"


@asynccontextmanager
async def _simulated(folder: Path, sharing: bool) -> AsyncIterator[World]:
    async with Xen(folder, sharing=sharing).running() as xen, trio.open_nursery() as nursery:
        await xen.start_domain(1)
        ours, theirs = xen.hypervisor(0), xen.hypervisor(1)
        await nursery.start(theirs.run)
        await nursery.start(ours.run)
        yield World(ours, SimPeer(xen, theirs, 0), HOME)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _real() -> AsyncIterator[World]:
    host, peer = Host(), HostPeer()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            yield World(host, peer, HOME)
            await host.store.remove(HOME)
            nursery.cancel_scope.cancel()
    finally:
        peer.close()


def pytest_configure(config: pytest.Config) -> None:
    """Register the suite's own mark."""
    config.addinivalue_line("markers", "abilities(dmabuf_export=…, dmabuf_import=…): of the worlds that a test is for")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test in the first world that has the abilities it needs. test_worlds.py lists the tests without a world in this run."""
    if "world" in metafunc.fixturenames:
        worlds = fitting(metafunc.function)[:1]
        elsewhere = "for a simulated Xen" if HOST else "for a real Xen: tests/lab"
        nowhere = pytest.param("", id="elsewhere", marks=pytest.mark.skip(reason=elsewhere))
        metafunc.parametrize("world", worlds or [nowhere], indirect=True)


@pytest.fixture
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A running hypervisor and a peer. At the end no resource may be held and no further file be open."""
    before = descriptors()
    abilities = WORLDS[request.param]
    async with _real() if HOST else _simulated(tmp_path, abilities.dmabuf_import) as world:
        found = world.hypervisor.abilities
        assert (found.dmabuf_export, found.dmabuf_import) == (abilities.dmabuf_export, abilities.dmabuf_import)
        yield world
        assert world.hypervisor.ledger == Ledger(), "the test has left something open"
    assert descriptors() == before
