"""The memory and the requests of a guest that does as it likes."""

from __future__ import annotations

import contextlib
import random
from typing import Final

from fuzz.choices import Choices
from fuzz.targets import requests_of

from displbe.sim.guest import BorrowedBuffer, DisplayBuffer, FrontConnector, Frontend
from displbe.sim.hypervisor import Domain
from displbe.wire import displif

__all__ = ["Memory", "random_requests"]

SIZES: Final = (12288, 12288, 12288, 4096, 6144, 49152, 1 << 20, 12287)
"""Sizes of buffers in bytes; that of 64x48 is the most frequent one."""
MOST: Final = 12
"""Buffers that a guest keeps. The oldest one is freed, or only forgotten, when there are more."""


class Memory:
    """Buffers that a guest has granted, with page directories that may be wrong."""

    def __init__(self, domain: Domain, chance: random.Random) -> None:
        self._domain = domain
        self._chance = chance
        self.buffers: list[DisplayBuffer | BorrowedBuffer] = []

    @property
    def directories(self) -> list[int]:
        """The references of the first pages of page directories."""
        return [buffer.directory for buffer in self.buffers] or [0]

    def add(self) -> None:
        """Grant another buffer: most often a usable one."""
        size = self._chance.choice(SIZES)
        if self._chance.random() < 0.2:
            self.buffers.append(BorrowedBuffer(self._domain, size))
        else:
            self.buffers.append(DisplayBuffer(self._domain, size, writable=self._chance.random() < 0.8))
        if len(self.buffers) > MOST:
            self.buffers.pop(0)

    def spoil(self) -> None:
        """Change a page directory: random references, a loop, zeros, or the references of another buffer."""
        grants = self._domain.grants
        if not self.buffers or self.directories[0] not in grants:
            return
        chance = self._chance
        directory = chance.choice(self.directories)
        if directory not in grants:
            return
        page = self._domain.pages(grants[directory].page, 1)
        match chance.randrange(5):
            case 0:
                page[:] = chance.randbytes(len(page))
            case 1:
                page[0:4] = directory.to_bytes(4, "little")
            case 2:
                page[4:] = bytes(len(page) - 4)
            case 3:
                at = 4 * chance.randrange(1, 8)
                page[at : at + 4] = chance.choice((0, 1, 8, 9, 0xFFFFFFFF, *self.directories)).to_bytes(4, "little")
            case _:
                page[8:12] = page[4:8]

    def revoke(self) -> None:
        """End grants of the guest at random, as far as Xen lets it: of buffers, of directories, of rings. Some become read-only."""
        refs = list(self._domain.grants)
        for ref in self._chance.sample(refs, min(len(refs), self._chance.choice((1, 3, 20)))):
            if self._chance.random() < 0.2:
                self._domain.grants[ref].writable = False
            else:
                self._domain.end_grant(ref)

    def scribble(self) -> None:
        """Draw into a buffer."""
        drawn = [buffer for buffer in self.buffers if isinstance(buffer, DisplayBuffer)]
        if drawn:
            pixels = self._chance.choice(drawn).pixels
            pixels[:64] = self._chance.randbytes(64)


def random_requests(chance: random.Random, directories: list[int], count: int) -> list[bytes]:
    """Return some requests, most of them nearly valid (fuzz.targets)."""
    slots = requests_of(Choices(chance.randbytes(64 * count)), directories)
    return [slot for _, slot in zip(range(count), slots, strict=False)]


def put(connector: FrontConnector, slots: list[bytes]) -> None:
    """Write requests into a ring without regard to unanswered ones, as far as there is room."""
    with contextlib.suppress(BufferError):
        for slot in slots:
            connector.ring.put(slot)


async def honest(display: Frontend, chance: random.Random) -> None:
    """Do what a driver does: buffers, a mode, flips, the end of the mode. Each step may be refused."""
    index = chance.randrange(len(display.connectors))
    dbuf, fb, buffer = await display.create_framebuffer(64, 48)
    await display.show(index, fb, 64, 48)
    for _ in range(chance.randrange(6)):
        await display.connectors[index].flip(fb)
    match chance.randrange(4):
        case 0:
            await display.hide(index)
            await display.destroy_framebuffer(dbuf, fb, buffer)
        case 1:
            await display.connectors[index].order(displif.FbDetach(0, fb))
        case 2:
            await display.connectors[index].ask(displif.DbufDestroy(0, dbuf))
        case _:
            await display.hide(index)
