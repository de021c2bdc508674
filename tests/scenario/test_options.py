"""Options that few guests use: an EDID, buffers that the backend allocates, an output that the configuration chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario.cards import Screens, world_on
from scenario.world import World, exchange, spec, until

from displbe.backend.guests import GuestSettings
from displbe.sim.guest import BorrowedBuffer, DisplayBuffer
from displbe.wire.displif import REQ_ALLOC, DbufCreate, DbufDestroy, FbAttach, GetEdid, SetConfig, decode_response
from displbe.wire.formats import fourcc


async def test_an_edid_is_made_where_no_monitor_has_one(world: World) -> None:
    async with world.guest(1, spec("HDMI-A-1", 1920, 1080)) as guest:
        for room, size in ((32768, 128), (128, 128), (200, 128)):
            buffer = DisplayBuffer(guest.domain, room)
            for ref in buffer.refs:
                guest.domain.grants[ref].writable = True
            answer = decode_response(await exchange(guest.display.connectors[0], GetEdid(0, room, buffer.directory)))
            assert (answer.status, answer.edid_sz) == (0, size)
            edid = bytes(buffer.pixels[:size])
            assert edid[:8] == bytes.fromhex("00ffffffffffff00")
            assert sum(edid) % 256 == 0
            detailed = edid[54:72]
            assert detailed[2] | (detailed[4] & 0xF0) << 4 == 1920
            assert detailed[5] | (detailed[7] & 0xF0) << 4 == 1080
            buffer.free()


async def test_be_alloc(screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With be-alloc, the guest draws into memory of the backend."""
    async with (
        world_on(screens, tmp_path, monkeypatch, guests={"painter": GuestSettings(be_alloc=True)}) as world,
        world.booted(1, spec()) as guest,
    ):
        world.tools.write("/local/domain/1/name", "painter", [("n", 0), ("r", 1)])
        world.tools.write(f"{world.tools.front(1)}/be-alloc", "1")
        await guest.display.connected.wait()
        connector = guest.display.connectors[0]
        for _ in range(2):
            buffer = BorrowedBuffer(guest.domain, 64 * 48 * 4)
            create = DbufCreate(0, 1, 64, 48, 32, buffer.size, REQ_ALLOC, buffer.directory, 0)
            await connector.order(create)
            assert world.held(1) == {"connectors": 1, "buffers": 1, "alloc_pages": 3}
            pixels = await buffer.map(guest.hypervisor)
            picture = bytes(range(256)) * 48
            pixels[: len(picture)] = picture
            await connector.order(FbAttach(0, 1, 2, 64, 48, fourcc("XR24")))
            await connector.order(SetConfig(0, 2, 0, 0, 64, 48, 32))
            await connector.flip(2)
            shown = world.picture()
            assert shown is not None
            assert shown.tobytes() == b"".join(picture[n : n + 3][::-1] for n in range(0, len(picture), 4))
            del pixels
            await guest.display.hide(0)
            await buffer.free()
            await connector.order(DbufDestroy(0, 1))
            assert world.held(1) == {"connectors": 1}


async def test_the_configuration_chooses_the_outputs(
    screens: Screens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = {"painter": GuestSettings(connectors=["DP-2", "DP-1"])}
    async with (
        world_on(screens, tmp_path, monkeypatch, outputs=["DP-1", "DP-2"], guests=guests) as world,
        world.booted(1, spec("anything"), spec("else")) as guest,
    ):
        world.tools.write("/local/domain/1/name", "painter", [("n", 0), ("r", 1)])
        await guest.display.connected.wait()
        _, fb, buffer = await guest.display.create_framebuffer(64, 48)
        buffer.pixels[:] = b"\x01\x02\x03\0" * (64 * 48)
        await guest.display.show(1, fb, 64, 48)
        shown = world.picture("DP-1")
        assert shown is not None
        assert shown.tobytes() == b"\x03\x02\x01" * (64 * 48)
        assert world.picture("DP-2") is None


async def test_a_name_that_the_guest_wrote_is_not_used(tmp_path: Path) -> None:
    guests = {"painter": GuestSettings(connectors=["DP-1"])}
    async with (
        World.running(tmp_path, outputs=["DP-1", "DP-2"], guests=guests) as world,
        world.booted(1, spec("DP-3")) as guest,
    ):
        world.tools.write("/local/domain/1/name", "painter", [("n", 1), ("r", 0)])
        await until(lambda: world.error(1))
        assert "no output DP-3" in (world.error(1) or "")
        assert not guest.display.connected.is_set()
