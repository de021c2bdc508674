"""A simulated machine whose DRM sink is on the model of a card, which scans out guests' pages, with and without the pump."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import trio
from memory_watch import content
from unit.drm_model import Board, no_monitor

from displbe.sim.hypervisor import SimBuffer, SimHypervisor, Xen
from displbe.sinks.base import NOBODY, Claimant, OutputUnavailable
from displbe.sinks.drm import hotplug
from displbe.sinks.drm import sink as sink_module
from displbe.sinks.drm.output import DrmOutput
from displbe.sinks.drm.sink import DrmSink
from displbe.xen.port import Abilities

from .world import REFRESH, World, descriptors

__all__ = [
    "SCREENS",
    "Screens",
    "board_of_any_size",
    "card_machine",
    "check_pumped",
    "hypervisor_on",
    "machine_on",
    "pump_of",
    "shining",
    "world_on",
]

Screens = Literal["headless", "pump", "card"]
SCREENS: Final[tuple[Screens, ...]] = ("headless", "pump", "card")
"""What a guest's screens are in a test: the headless sink's, a card's whose flips the pump serves, or a card's without the pump."""
FEW: Final = 12
"""Flips of which some must have been the pump's."""


class _NamingSink(DrmSink):
    """A DRM sink in which each new name of an output stands for the next connector of the model."""

    def __init__(self, *arguments: Any, **keys: Any) -> None:
        super().__init__(*arguments, **keys)
        self._connectors: dict[str, str] = {}

    def claim(self, name: str, width: int, height: int, claimant: Claimant = NOBODY) -> DrmOutput:
        if self.claimed(name) is not None:
            raise OutputUnavailable(f"connector {name} is taken by another guest")
        if not name.startswith("Virtual-"):
            connector = self._connectors.setdefault(name, f"Virtual-{len(self._connectors) + 1}")
            output = super().claim(connector, width, height, claimant)
            output.name = name
        else:
            output = super().claim(name, width, height, claimant)
        assert isinstance(output, DrmOutput)
        return output


def _export_dmabufs(board: Board, patch: pytest.MonkeyPatch) -> None:
    """Give each buffer of a guest a file in place of a dma-buf. The model's card looks at its inode, and reads the guest's pages."""
    closing, files = SimBuffer.aclose, dict[SimBuffer, int]()

    async def dmabuf(buffer: SimBuffer) -> int:
        memory = await buffer.map()
        if buffer not in files:
            files[buffer] = os.memfd_create("dma-buf")
            board.contents[os.fstat(files[buffer]).st_ino] = partial(content, memory, 0, buffer.size)
        return files[buffer]

    async def aclose(buffer: SimBuffer) -> None:
        file = files.pop(buffer, None)
        if file is not None:
            del board.contents[os.fstat(file).st_ino]
            os.close(file)
        await closing(buffer)

    patch.setattr(SimBuffer, "dmabuf", dmabuf)
    patch.setattr(SimBuffer, "aclose", aclose)


def board_of_any_size(connectors: int = 10) -> Board:
    """Return a board that shows pictures of all sizes that the scenarios have."""
    board = Board(connectors, [(64, 48), (128, 48), (1920, 1080), (3840, 2160)])
    board.can_leave_free = True
    return board


@contextlib.contextmanager
def shining(board: Board, refresh: float) -> Iterator[None]:
    """Refresh the screens, in a thread: a card does not wait for displbe's event loop. `refresh` 0: the block calls `Board.vblank`."""
    if not refresh:
        yield
        return
    ended = threading.Event()

    def shine() -> None:
        while not ended.is_set():
            time.sleep(1 / refresh)
            board.vblank()

    thread = threading.Thread(target=shine)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def hypervisor_on(xen: Xen, board: Board | None) -> SimHypervisor:
    """Return Dom0's hypervisor, with the card on which the pump commits, if there is one."""
    hypervisor = xen.hypervisor(0)
    if board is not None:
        hypervisor.commit = board.commit
    return hypervisor


@contextlib.asynccontextmanager
async def card_machine(
    folder: Path, patch: pytest.MonkeyPatch, board: Board, refresh: float, *, dmabufs: bool = True
) -> AsyncIterator[None]:
    """Put a board into the machines of the block, and refresh its screens `refresh` times a second (0: never).

    `dmabufs`: Xen exports dma-bufs.
    """
    devices = folder / "dri"
    devices.mkdir()
    (devices / "card0").touch()
    on_board = partial(_NamingSink, open_device=board.open, devices=devices, seat=lambda: None)
    patch.setattr(sink_module, "DrmSink", on_board)
    patch.setattr(hotplug, "_monitor", no_monitor)
    if dmabufs:
        _export_dmabufs(board, patch)
    made, mapped = SimHypervisor.__init__, SimHypervisor.map_buffer

    def make(self: SimHypervisor, *arguments: Any) -> None:
        made(self, *arguments)
        self.abilities = Abilities(dmabufs, self.abilities.dmabuf_import, self.abilities.reason)

    async def map_buffer(self: SimHypervisor, *arguments: Any, dmabuf: bool, **keys: Any) -> SimBuffer:
        return await mapped(self, *arguments, dmabuf=False, **keys)

    patch.setattr(SimHypervisor, "__init__", make)
    patch.setattr(SimHypervisor, "map_buffer", map_buffer)
    with shining(board, refresh):
        yield
    await trio.lowlevel.checkpoint()


def check_pumped(board: Board, screens: Screens) -> None:
    """Check that flips were served by what should serve them."""
    if screens == "card":
        assert board.pumped == 0
    elif board.flips >= FEW:
        assert board.pumped > 0, "the pump served nothing"


def pump_of(screens: Screens) -> Literal["auto", "off"]:
    """Return `[daemon] pump` for such screens."""
    return "off" if screens == "card" else "auto"


@contextlib.asynccontextmanager
async def machine_on(
    screens: Screens, folder: Path, patch: pytest.MonkeyPatch, refresh: float = REFRESH, *, dmabufs: bool = True
) -> AsyncIterator[Board | None]:
    """Put such screens into the machines of the block (`card_machine`). At the end, what should serve flips must have served them."""
    if screens == "headless":
        yield None
        return
    board = board_of_any_size()
    async with card_machine(folder, patch, board, refresh, dmabufs=dmabufs):
        yield board
    check_pumped(board, screens)
    board.cards.clear()


@contextlib.asynccontextmanager
async def world_on(
    screens: Screens,
    folder: Path,
    patch: pytest.MonkeyPatch,
    refresh: float = REFRESH,
    *,
    dmabufs: bool = True,
    **options: Any,
) -> AsyncIterator[World]:
    """Run a world (`World.running`) on such screens (`machine_on`). At the end, no further file may be open."""
    before = descriptors()
    async with machine_on(screens, folder, patch, refresh, dmabufs=dmabufs) as board:
        card: dict[str, Any] = (
            {} if board is None else {"sink": "drm", "commit": board.commit, "pump": pump_of(screens)}
        )
        async with World.running(folder, refresh=refresh, **card, **options) as world:
            yield world
    del world
    assert descriptors() == before
