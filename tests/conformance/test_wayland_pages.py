"""A Wayland compositor shows guests' pages: from a file that it maps, and from a dma-buf. When a buffer is closed, it holds neither."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from conformance.world import World
from sinks.compositor import CORE, FakeCompositor

from displbe.sinks.base import Claimant, DeviceConnector, Geometry, Part
from displbe.sinks.wayland.buffers import BufferState, WaylandBuffer
from displbe.sinks.wayland.output import WaylandOutput
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.wayland.sink import WaylandSink
from displbe.wire.formats import fourcc
from displbe.xen.port import Ledger

WIDTH, HEIGHT, PAGES = 256, 100, 25
COLOUR = b"\x12\x34\x56\x00"


@asynccontextmanager
async def shown(
    world: World, compositor: FakeCompositor, refs: list[int], dmabuf: str = "auto"
) -> AsyncIterator[WaylandBuffer]:
    """Show a guest's buffer on a surface while the block lasts; then take it back, and give the output back."""
    async with trio.open_nursery() as nursery:
        compositor.nursery = nursery
        sink = WaylandSink(WaylandSettings(dmabuf=dmabuf, refresh=0.0, trust_compositor=True), compositor.opened)  # type: ignore[arg-type]
        await nursery.start(sink.run)
        connector = DeviceConnector(Claimant(world.peer.domid, "peer"), 0, 0, "A", WIDTH, HEIGHT)
        sink.connector_added(connector)
        output = sink.claim(connector.name, WIDTH, HEIGHT, connector.claimant)
        assert isinstance(output, WaylandOutput)
        guest = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False, shared=True)
        with trio.fail_after(20):
            buffer = await output.attach(guest, Geometry(WIDTH, HEIGHT, fourcc("XR24"), WIDTH * 4, 0))
            assert isinstance(buffer, WaylandBuffer)
            await output.enable(buffer, Part(0, 0, WIDTH, HEIGHT))
            while not output.path or not output.shown:
                await trio.sleep(0.01)
            yield buffer
            await buffer.aclose()
            await guest.aclose()
            assert world.hypervisor.ledger == Ledger()
            await output.release()
            sink.connector_removed(connector)
        compositor.crash()
        nursery.cancel_scope.cancel()


async def test_the_compositor_maps_them(world: World) -> None:
    granted = world.peer.grant(PAGES)
    for ref in granted:
        world.peer.write(ref, COLOUR * 1024)
    compositor = FakeCompositor()
    async with shown(world, compositor, granted) as buffer:
        assert buffer.state is BufferState.SHM
        (surface,) = compositor.client.surfaces.values()
        assert surface.shown is not None
        assert surface.shown.row(0) == surface.shown.row(HEIGHT - 1) == COLOUR * WIDTH
        world.peer.write(granted[0], b"\xff" * 4)
        assert surface.shown.row(0)[:4] == b"\xff" * 4
    assert await world.peer.take_back(granted)


@pytest.mark.abilities(dmabuf_export=True)
async def test_they_are_imported(world: World) -> None:
    granted = world.peer.grant(PAGES)
    for ref in granted:
        world.peer.write(ref, COLOUR * 1024)
    compositor = FakeCompositor({**CORE, "zwp_linux_dmabuf_v1": 3})
    compositor.dmabuf_formats = [fourcc("XR24")]
    async with shown(world, compositor, granted, "always") as buffer:
        assert buffer.state is BufferState.DMABUF
        (what,) = compositor.client.dmabufs
        inode, *rest = what
        assert inode == os.fstat(await buffer.pages.dmabuf()).st_ino
        assert rest == [0, 0, WIDTH * 4, 0, WIDTH, HEIGHT, fourcc("XR24")]
    assert await world.peer.take_back(granted)
