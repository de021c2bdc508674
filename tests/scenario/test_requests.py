"""Invalid requests: each gets its error number and changes nothing, and the device stays connected.

A defective frontend may also send these requests. tests/hostile has the other means of a hostile guest.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from scenario.world import World, exchange, spec

from displbe.backend.quota import Limits
from displbe.sim.guest import DisplayBuffer, FrontConnector, Guest
from displbe.wire.displif import (
    MESSAGE_SIZE,
    REQ_ALLOC,
    DbufCreate,
    DbufDestroy,
    FbAttach,
    FbDetach,
    GetEdid,
    PageFlip,
    Request,
    SetConfig,
    UnknownRequest,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc
from displbe.xen.port import Ledger

E: Final = Errno
XR24: Final = fourcc("XR24")
DBUF: Final = 0x1000
FB: Final = 0x2000
SIZE: Final = 64 * 48 * 4


class Stage:
    """A guest that shows a buffer (64x48 pixels), with a second connector."""

    def __init__(self, world: World, guest: Guest, buffer: DisplayBuffer) -> None:
        self.world = world
        self.guest = guest
        self.buffer = buffer
        self.ring, self.second = guest.display.connectors

    @classmethod
    @asynccontextmanager
    async def set(cls, world: World) -> AsyncIterator[Stage]:
        """Run a stage. At the end, check that the daemon still works and holds what it held before."""
        async with world.guest(1, spec("first"), spec("second")) as guest:
            stage = cls(world, guest, DisplayBuffer(guest.domain, SIZE))
            await stage.expect(stage.create(DBUF), 0)
            await stage.expect(FbAttach(0, DBUF, FB, 64, 48, XR24), 0)
            await stage.expect(SetConfig(0, FB, 0, 0, 64, 48, 32), 0)
            before = (_held(world), Ledger(**_fields(world.hypervisor.ledger)))
            yield stage
            assert (_held(world), world.hypervisor.ledger) == before
            await stage.ring.flip(FB)

    def create(self, cookie: int = 0x9000, **changes: int) -> DbufCreate:
        """Return a valid DBUF_CREATE over the buffer's pages, with changes."""
        fields = {
            "width": 64,
            "height": 48,
            "bpp": 32,
            "buffer_sz": SIZE,
            "flags": 0,
            "gref_directory": self.buffer.directory,
            "data_ofs": 0,
        }
        return DbufCreate(0, cookie, **(fields | changes))

    async def expect(self, request: Request, status: int, ring: FrontConnector | None = None) -> None:
        """Send a request; check the whole response."""
        answer = await exchange(ring or self.ring, request)
        number = int.from_bytes(answer[:2], "little")
        assert answer == encode_response(number, request.operation, -status), f"{request}: {decode_response(answer)}"


def _held(world: World) -> dict[str, int]:
    """Return what the guest holds, without the frame with which a card's screen is covered when the guest removes what it shows."""
    return {kind: amount for kind, amount in world.held(1).items() if kind != "copy_pages"}


def _fields(ledger: Ledger) -> dict[str, int]:
    return {name: getattr(ledger, name) for name in ledger.__struct_fields__}


async def test_unknown_operations(world: World) -> None:
    async with Stage.set(world) as stage:
        for operation in (0x00, 0x0F, 0x17, 0xFF):
            await stage.expect(UnknownRequest(0, operation), E.EOPNOTSUPP)
            await stage.expect(UnknownRequest(0, operation), E.EOPNOTSUPP, stage.second)


async def test_cookies(world: World) -> None:
    async with Stage.set(world) as stage:
        await stage.expect(stage.create(0), E.EINVAL)
        await stage.expect(stage.create(DBUF), E.EEXIST)
        await stage.expect(FbAttach(0, DBUF, 0, 64, 48, XR24), E.EINVAL)
        await stage.expect(FbAttach(0, DBUF, FB, 64, 48, XR24), E.EEXIST)
        for unknown in (0, 1, FB, 0xFFFF_FFFF_FFFF_FFFF):
            await stage.expect(DbufDestroy(0, unknown), E.ENOENT)
            await stage.expect(FbAttach(0, unknown, 0x3000, 64, 48, XR24), E.ENOENT)
        for unknown in (0, 1, DBUF, 0xFFFF_FFFF_FFFF_FFFF):
            await stage.expect(FbDetach(0, unknown), E.ENOENT)
            await stage.expect(PageFlip(0, unknown), E.ENOENT)
        await stage.expect(SetConfig(0, DBUF, 0, 0, 64, 48, 32), E.ENOENT)


async def test_a_buffers_geometry(world: World) -> None:
    async with Stage.set(world) as stage:
        for changes in (
            {"width": 0},
            {"height": 0},
            {"bpp": 0},
            {"bpp": 33},
            {"bpp": 0xFFFFFFFF},
            {"width": 65},
            {"height": 49},
            {"buffer_sz": SIZE - 1},
            {"buffer_sz": 0},
            {"data_ofs": 1},
            {"data_ofs": 0xFFFFFFFF},
            {"width": 0x4000, "height": 0x4000},
            {"width": 0x10000, "height": 0x10000},
            {"width": 0x40000001, "height": 1},
            {"width": 0, "height": 0, "bpp": 0, "data_ofs": SIZE},
        ):
            await stage.expect(stage.create(**changes), E.EINVAL)


async def test_a_framebuffers_geometry(world: World) -> None:
    async with Stage.set(world) as stage:
        for width, height, code in (
            (65, 48, XR24),
            (64, 49, XR24),
            (0, 48, XR24),
            (64, 0, XR24),
            (0xFFFFFFFF, 0xFFFFFFFF, XR24),
            (64, 48, fourcc("RG16")),
            (64, 48, fourcc("NV12")),
            (64, 48, 0),
            (64, 48, XR24 | 1 << 31),
        ):
            await stage.expect(FbAttach(0, DBUF, 0x3000, width, height, code), E.EINVAL)


async def test_page_directories(world: World) -> None:
    async with Stage.set(world) as stage:
        domain = stage.guest.domain
        large = DisplayBuffer(domain, 1100 * 4096)
        pages = [domain.pages(large._directory + number, 1) for number in range(2)]
        right = [bytes(page) for page in pages]
        create = stage.create(width=1024, height=1000, buffer_sz=large.size, gref_directory=large.directory)

        async def refused(number: int, offset: int, value: int) -> None:
            pages[number][offset : offset + 4] = value.to_bytes(4, "little")
            await stage.expect(create, E.EINVAL)
            pages[number][:] = right[number]

        await refused(0, 0, 0)  # it ends early
        await refused(0, 0, large.directory)  # a loop
        await refused(0, 0, 0xFFFFFF)
        await refused(0, 4, 0)
        await refused(0, 4 + 4 * 500, 0xFFFFFFFF)
        await refused(1, 4 + 4 * 76, 0xFFFFFF)  # the last one
        for directory in (0, 0xFFFFFFFF, 0xFFFFFF):
            await stage.expect(stage.create(gref_directory=directory), E.EINVAL)
        stranger = domain.grant(domain.allocate(1), 7)
        await stage.expect(stage.create(gref_directory=stranger), E.EINVAL)
        await stage.expect(create, 0)
        await stage.expect(DbufDestroy(0, create.dbuf_cookie), 0)
        large.free()


async def test_what_is_shown(world: World) -> None:
    async with Stage.set(world) as stage:
        for x, y, width, height in (
            (64, 0, 64, 48),
            (0, 48, 64, 48),
            (0, 0, 65, 48),
            (0, 0, 0, 0),
            (0, 0, 64, 0),
            (0xFFFFFFFF, 0xFFFFFFFF, 2, 2),
        ):
            await stage.expect(SetConfig(0, FB, x, y, width, height, 32), E.EINVAL)
        await stage.expect(PageFlip(0, FB), E.EINVAL, stage.second)  # which is off
        await stage.expect(SetConfig(0, 0, 0, 0, 0, 0, 0), 0, stage.second)
        await stage.expect(SetConfig(0, FB, 0, 0, 64, 48, 32), 0, stage.second)
        await stage.expect(SetConfig(0, 0, 0, 0, 0, 0, 0), 0, stage.second)
        await stage.expect(PageFlip(0, FB), E.EINVAL, stage.second)


async def test_requests_on_buffers_belong_on_connector_0(world: World) -> None:
    async with Stage.set(world) as stage:
        for request in (stage.create(), DbufDestroy(0, DBUF), FbAttach(0, DBUF, 0x3000, 64, 48, XR24), FbDetach(0, FB)):
            await stage.expect(request, E.EINVAL, stage.second)


async def test_be_alloc_needs_the_configuration(world: World) -> None:
    """Without be-alloc in XenStore the flag is ignored, because Linux leaves old bytes there."""
    async with Stage.set(world) as stage:
        await stage.expect(stage.create(flags=REQ_ALLOC), 0)
        await stage.expect(DbufDestroy(0, 0x9000), 0)
    async with world.booted(2, spec()) as guest:
        world.tools.write(f"{world.tools.front(2)}/be-alloc", "1")
        await guest.display.connected.wait()
        buffer = DisplayBuffer(guest.domain, SIZE)
        request = DbufCreate(0, DBUF, 64, 48, 32, SIZE, REQ_ALLOC, buffer.directory, 0)
        answer = decode_response(await exchange(guest.display.connectors[0], request))
        assert answer.status == -E.EOPNOTSUPP
        assert world.held(2) == {"connectors": 1}


async def test_edids(world: World) -> None:
    async with Stage.set(world) as stage:
        for size, directory in ((0, stage.buffer.directory), (127, stage.buffer.directory), (4096, 0xFFFFFF)):
            await stage.expect(GetEdid(0, size, directory), E.EINVAL)


async def test_limits(tmp_path: Path) -> None:
    limits = Limits(pages=4, buffers=3, framebuffers=2)
    async with World.running(tmp_path, limits=limits) as world, Stage.set(world) as stage:
        ring = stage.ring
        await stage.expect(stage.create(1, width=16, height=16, buffer_sz=4096), 0)
        await stage.expect(stage.create(2, width=16, height=16, buffer_sz=4096), E.ENOSPC)  # 3 and 1 pages are held
        await stage.expect(DbufDestroy(0, 1), 0)
        await stage.expect(stage.create(1, width=1, height=1, buffer_sz=0xFFFFF000), E.ENOSPC)
        await stage.expect(FbAttach(0, DBUF, 0x3000, 64, 48, XR24), 0)
        await stage.expect(FbAttach(0, DBUF, 0x4000, 64, 48, XR24), E.ENOSPC)
        await stage.expect(FbDetach(0, 0x3000), 0)
        await stage.expect(DbufDestroy(0, DBUF), 0, ring)
        for cookie in (1, 2, 3):
            await stage.expect(stage.create(cookie, width=16, height=16, buffer_sz=4096), 0)
        await stage.expect(stage.create(4, width=16, height=16, buffer_sz=4096), E.ENOSPC)
        for cookie in (1, 2, 3):
            await stage.expect(DbufDestroy(0, cookie), 0)
        await stage.expect(stage.create(DBUF), 0)
        await stage.expect(FbAttach(0, DBUF, FB, 64, 48, XR24), 0)
        await stage.expect(SetConfig(0, FB, 0, 0, 64, 48, 32), 0)


async def test_any_bytes(world: World) -> None:
    """Random messages, most of them similar to valid ones, each get a whole response, and the device stays connected."""
    chance = random.Random(4)
    async with Stage.set(world) as stage:
        good: list[Request] = [
            stage.create(),
            DbufDestroy(0, 0x9000),
            FbAttach(0, 0x9000, 0x3000, 64, 48, XR24),
            FbDetach(0, 0x3000),
            GetEdid(0, 4096, stage.buffer.directory),
            PageFlip(0, 0x3000),
        ]
        made: dict[type[Request], list[int]] = {DbufCreate: [], FbAttach: []}
        for _ in range(400):
            data = bytearray(encode_request(chance.choice(good)))
            for _ in range(chance.choice((0, 1, 1, 2, 8, 64))):
                data[chance.randrange(MESSAGE_SIZE)] = chance.choice((0, 1, 0x10, 0x15, 0xFF, chance.randrange(256)))
            request = decode_request(bytes(data))
            if isinstance(request, SetConfig) or request in (DbufDestroy(request.id, DBUF), FbDetach(request.id, FB)):
                continue  # these would change what the stage shows
            answer = await exchange(chance.choice((stage.ring, stage.second)), bytes(data))
            response = decode_response(answer)
            assert response.status <= 0
            assert answer[2:] == encode_response(0, data[2], response.status, response.edid_sz)[2:]
            if response.status == 0 and isinstance(request, DbufCreate):
                made[DbufCreate].append(request.dbuf_cookie)
            elif response.status == 0 and isinstance(request, FbAttach):
                made[FbAttach].append(request.fb_cookie)
        assert made[DbufCreate]
        for cookie in made[FbAttach]:
            await exchange(stage.ring, FbDetach(0, cookie))
        for cookie in made[DbufCreate]:
            await exchange(stage.ring, DbufDestroy(0, cookie))
