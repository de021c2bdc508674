"""X servers, and simulated machines whose daemon shows its guests on them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from scenario.world import World, descriptors
from sinks.x11.xvfb import User, Xvfb

from displbe.backend.quota import Limits
from displbe.config import Settings
from displbe.sim.hypervisor import Xen
from displbe.sinks.x11.output import X11Output
from displbe.sinks.x11.settings import X11Settings
from displbe.sinks.x11.sink import X11Sink
from displbe.xen.port import Ledger

Worlds = Callable[..., contextlib.AbstractAsyncContextManager[World]]


@pytest.fixture(scope="session")
def xvfb() -> Iterator[Xvfb]:
    """A server for all tests that neither stop nor kill it."""
    with Xvfb.running() as server:
        yield server


@pytest.fixture
def user(xvfb: Xvfb) -> Iterator[User]:
    """The user of that server. No window has the focus, and the pointer is in the corner."""
    with User.of(xvfb) as user:
        user.focus(1)  # PointerRoot
        user.point(639, 479)
        yield user


@pytest.fixture
def worlds(tmp_path: Path) -> Worlds:
    """`worlds(display, key=value, …)`: a simulated Xen with a daemon. At the end, no resource is held and no file is open."""

    @contextlib.asynccontextmanager
    async def world(display: str, limits: Limits | None = None, **settings: Any) -> AsyncIterator[World]:
        before = descriptors()
        shown = X11Settings(display=display, refresh=250.0, **settings)
        configured = Settings(sink="x11", x11=shown, limits=limits or Limits())
        async with Xen(tmp_path).running() as xen, trio.open_nursery() as nursery:
            made = World(xen, nursery, configured)
            await made.start_daemon()
            yield made
            await made.settled()
            await made.stop_daemon()
            assert made.hypervisor.ledger == Ledger()
            nursery.cancel_scope.cancel()
        assert descriptors() == before

    return world


def sink_of(world: World) -> X11Sink:
    """The daemon's sink."""
    assert isinstance(world.daemon.sink, X11Sink)
    return world.daemon.sink


def reopen(world: World, domid: int = 1) -> None:
    """Open the window of a guest's first connector again, as `displbectl reopen` does."""
    display = world.device(domid).service
    display.reopen(display.device_connectors[0])


def output_of(world: World, name: str = "HDMI-A-1") -> X11Output:
    """An output that a guest has claimed."""
    found = world.daemon.sink.claimed(name)
    assert isinstance(found, X11Output)
    return found
