"""The worlds of the suite: the simulated Xen anywhere, the real one where DISPLBE_HOST=1 says that this is a Dom0 with time for us."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from conformance.peer import HostPeer, SimPeer
from conformance.world import World, descriptors

from displbe.sim.hypervisor import Xen
from displbe.xen.host import Host
from displbe.xen.port import Ledger

HOST = os.environ.get("DISPLBE_HOST") == "1"
HOME = "data/displbe-conformance"


@asynccontextmanager
async def _simulated(folder: Path) -> AsyncIterator[World]:
    async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
        await xen.start_domain(1)
        ours, theirs = xen.hypervisor(0), xen.hypervisor(1)
        await nursery.start(theirs.run)
        await nursery.start(ours.run)
        yield World(ours, SimPeer(xen, theirs, 0), HOME)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _real(folder: Path) -> AsyncIterator[World]:
    host, peer = Host(), HostPeer()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            yield World(host, peer, HOME)
            await host.store.remove(HOME)
            nursery.cancel_scope.cancel()
    finally:
        peer.close()


@pytest.fixture(params=["host" if HOST else "sim"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A hypervisor that runs, and a peer. At the end nothing may be held, and no file be open that was not before."""
    before = descriptors()
    make = _real if request.param == "host" else _simulated
    async with make(tmp_path) as world:
        yield world
        assert world.hypervisor.ledger == Ledger(), "the test has left something open"
    assert descriptors() == before
