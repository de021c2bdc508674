"""A simulated machine whose DRM sink is on the model of a card, which scans out guests' pages, with and without the pump."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from unit.drm_model import Board, no_monitor

from displbe.sim.hypervisor import SimBuffer, SimHypervisor
from displbe.sinks.drm import hotplug
from displbe.sinks.drm import sink as sink_module
from displbe.xen.port import Abilities

__all__ = ["card_machine"]


async def _dmabuf(buffer: SimBuffer) -> int:
    """Return the memory of the guest's domain in place of a dma-buf; the model's card only looks at its inode."""
    await trio.lowlevel.checkpoint()
    return buffer._grants[0].memfd


@contextlib.asynccontextmanager
async def card_machine(
    folder: Path, patch: pytest.MonkeyPatch, board: Board, refresh: float, *, dmabufs: bool = True
) -> AsyncIterator[None]:
    """Put a board into the machines of the block, and refresh its screens `refresh` times a second. `dmabufs`: Xen exports dma-bufs."""
    devices = folder / "dri"
    devices.mkdir()
    (devices / "card0").touch()
    on_board = partial(sink_module.DrmSink, open_device=board.open, devices=devices, seat=lambda: None)
    patch.setattr(sink_module, "DrmSink", on_board)
    patch.setattr(hotplug, "_monitor", no_monitor)
    patch.setattr(SimBuffer, "dmabuf", _dmabuf)
    made, mapped = SimHypervisor.__init__, SimHypervisor.map_buffer

    def make(self: SimHypervisor, *arguments: Any) -> None:
        made(self, *arguments)
        self.abilities = Abilities(dmabufs, self.abilities.dmabuf_import, self.abilities.reason)

    async def map_buffer(self: SimHypervisor, *arguments: Any, dmabuf: bool, **keys: Any) -> SimBuffer:
        return await mapped(self, *arguments, dmabuf=False, **keys)

    patch.setattr(SimHypervisor, "__init__", make)
    patch.setattr(SimHypervisor, "map_buffer", map_buffer)

    async def shine() -> None:
        while True:
            await trio.sleep(1 / refresh)
            board.vblank()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shine)
        yield
        nursery.cancel_scope.cancel()
