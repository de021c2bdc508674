"""Table C: the geometry of buffers and framebuffers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hostile.rows import row
from hostile.stage import Stage, attach, config, create, raw_buffer, status
from scenario.cards import Screens
from scenario.world import descriptors, spec, until

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.sim.guest import Guest
from displbe.sinks.base import Output, SinkError
from displbe.sinks.drm.output import DrmOutput
from displbe.sinks.headless.output import HeadlessOutput
from displbe.wire.displif import REQ_ALLOC, DbufDestroy, FbDetach, PageFlip, decode_response, encode_request
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc

COOKIE = 0x1000
FB = 0x2000
U32 = 0xFFFFFFFF
SIZE = 64 * 48 * 4


async def refused(stage: Stage, guest: Guest, code: Errno, *cases: dict[str, int]) -> None:
    """Check that DBUF_CREATEs with these changes get this error and leave nothing held, and that a valid one is served after them."""
    connector = guest.display.connectors[0]
    buffer = raw_buffer(guest)
    held = stage.ledger
    for changes in cases:
        assert await status(connector, create(buffer, **changes)) == -code, changes
        assert stage.ledger == held
    assert stage.held == {"connectors": 1}
    assert await status(connector, create(buffer)) == 0, "a right one is served"
    assert await status(connector, DbufDestroy(0, COOKIE)) == 0
    buffer.free()


@row("width x bpp, or stride x height, beyond 32 bits", "EINVAL")
async def test_c1_products_wrap(stage: Stage) -> None:
    async with stage.bad() as bad:
        await refused(
            stage,
            bad,
            Errno.EINVAL,
            {"width": 0x40000001},
            {"width": 0x08000000, "height": 1},
            {"width": 16384, "height": 0x10000},
            {"width": 0x10000, "height": 16384},
            {"width": U32, "height": U32, "buffer_sz": U32},
            {"width": 16384, "height": 16384},
        )


@row("the picture is larger than `buffer_sz`: 1920x1080 in 4096 bytes, one byte too few", "EINVAL")
async def test_c2_larger_than_its_buffer(stage: Stage) -> None:
    async with stage.bad() as bad:
        cases = (
            {"width": 1920, "height": 1080, "buffer_sz": 4096},
            {"buffer_sz": SIZE - 1},
            {"height": 49},
            {"width": 65},
        )
        await refused(stage, bad, Errno.EINVAL, *cases)


@row("`data_ofs` is beyond the buffer, or so large that the last row is outside", "EINVAL")
async def test_c3_offset(stage: Stage) -> None:
    async with stage.bad() as bad:
        cases = [{"data_ofs": offset} for offset in (1, SIZE - 1, SIZE, SIZE + 1, 1 << 31, U32)]
        await refused(stage, bad, Errno.EINVAL, *cases)
        pending = {"width": 0, "height": 0, "bpp": 0}
        await refused(stage, bad, Errno.EINVAL, *[pending | {"data_ofs": offset} for offset in (SIZE, U32)])


@pytest.fixture
async def allowed(tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on which the hostile guest may use be-alloc. The model of a card has no pages that Xen could grant."""
    before = descriptors()
    async with Stage.set(tmp_path, settings=GuestSettings(be_alloc=True)) as stage:
        yield stage
    assert descriptors() == before


@row("be-alloc with a `data_ofs` other than 0", "EINVAL")
async def test_c3_offset_into_our_buffer(allowed: Stage) -> None:
    async with allowed.bad(be_alloc=True) as bad:
        await refused(allowed, bad, Errno.EINVAL, {"flags": REQ_ALLOC, "data_ofs": 64, "buffer_sz": 2 * SIZE})


@row("`buffer_sz` 0; width, height or bpp 0 (not all three); bpp 1, 7, 33, 64, 2^32 - 1; sides over 16384", "EINVAL")
async def test_c4_impossible_sizes(stage: Stage) -> None:
    async with stage.bad() as bad:
        cases: list[dict[str, int]] = [{"buffer_sz": 0}, {"buffer_sz": 0, "width": 0, "height": 0, "bpp": 0}]
        cases += [{"width": 0}, {"height": 0}, {"bpp": 0}, {"width": 0, "height": 0}, {"height": 0, "bpp": 0}]
        cases += [{"bpp": bpp} for bpp in (1, 7, 9, 12, 33, 64, 0x20000020, U32)]
        cases += [
            {"width": 16385, "height": 1, "buffer_sz": 1 << 20},
            {"width": 1, "height": 16385, "buffer_sz": 1 << 20},
        ]
        await refused(stage, bad, Errno.EINVAL, *cases)


@row(
    "width, height and bpp are all 0: an imported buffer, whose size and format come with FB_ATTACH",
    "0; a framebuffer that does not fit gets EINVAL",
)
async def test_c4_pending_buffer(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = raw_buffer(bad)
        assert await status(connector, create(buffer, width=0, height=0, bpp=0, data_ofs=256)) == 0
        assert await status(connector, attach(FB)) == -Errno.EINVAL, "the offset leaves too little"
        for width, height in ((65, 48), (16384, 16384), (U32, 1), (1, U32), (0, 1), (1, 0)):
            assert await status(connector, attach(FB, width=width, height=height)) == -Errno.EINVAL
        assert await status(connector, attach(FB, height=47)) == 0
        assert await status(connector, config(FB, height=47)) == 0
        assert await status(connector, DbufDestroy(0, COOKIE)) == 0
        buffer.free()


@row("cookie 0", "EINVAL")
async def test_c5_cookie_0(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        await refused(stage, bad, Errno.EINVAL, {"dbuf_cookie": 0})
        buffer = raw_buffer(bad)
        assert await status(connector, create(buffer)) == 0
        assert await status(connector, attach(0)) == -Errno.EINVAL
        assert stage.held == {"connectors": 1, "buffers": 1, "pages": 3}


@row("a cookie that is already in use", "EEXIST; the object that has the cookie does not change")
async def test_c6_cookie_in_use(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer, other = raw_buffer(bad), raw_buffer(bad)
        assert await status(connector, create(buffer)) == 0
        assert await status(connector, create(other)) == -Errno.EEXIST
        assert await status(connector, attach(FB)) == 0
        assert await status(connector, attach(FB, width=32)) == -Errno.EEXIST
        assert stage.held == {"connectors": 1, "buffers": 1, "pages": 3, "framebuffers": 1}
        other.free()
        buffer.pixels[:] = b"\0\0\xff\0" * (64 * 48)
        assert await status(connector, config(FB)) == 0
        assert stage.shows("bad", 255, 0, 0)


@row("FB_ATTACH to a buffer that does not exist", "ENOENT")
async def test_c7_unknown_buffer(stage: Stage) -> None:
    async with stage.bad() as bad:
        for cookie in (0, 1, COOKIE, (1 << 64) - 1):
            assert await status(bad.display.connectors[0], attach(FB, dbuf=cookie)) == -Errno.ENOENT


@row("a framebuffer that is larger than its buffer, has size 0, or has a format with other bits per pixel", "EINVAL")
async def test_c8_framebuffer_does_not_fit(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        assert await status(connector, create(raw_buffer(bad))) == 0
        for width, height in ((65, 48), (64, 49), (0, 48), (64, 0), (0, 0), (U32, U32), (48, 64), (0x80000040, 48)):
            assert await status(connector, attach(FB, width=width, height=height)) == -Errno.EINVAL
        for name in ("RG16", "RG24", "XR15", "YUYV"):
            assert await status(connector, attach(FB, code=fourcc(name))) == -Errno.EINVAL
        assert stage.held == {"connectors": 1, "buffers": 1, "pages": 3}


@row("unknown formats, planar ones, big-endian ones", "EINVAL")
async def test_c9_unknown_formats(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        assert await status(connector, create(raw_buffer(bad))) == 0
        codes = [0, U32, 32, *(fourcc(name) for name in ("NV12", "YU12", "AR30", "XB4H", "\n\x1b[J"))]
        codes += [fourcc(name) | 1 << 31 for name in ("XR24", "RG16")]
        for code in codes:
            assert await status(connector, attach(FB, code=code)) == -Errno.EINVAL


@row(
    "more buffers, framebuffers or pages than the quota", "ENOSPC; everything that the guest already has keeps working"
)
async def test_c10_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screens: Screens) -> None:
    limits = Limits(pages=40, buffers=8, framebuffers=12)
    async with Stage.on(screens, tmp_path, monkeypatch, limits=limits) as stage, stage.bad() as bad:
        connector = bad.display.connectors[0]
        small, large = raw_buffer(bad, 4096), raw_buffer(bad, 40 * 4096)
        tiny = {"width": 1, "height": 1}
        for cookie in range(1, 9):
            assert await status(connector, create(small, cookie, **tiny)) == 0
        assert await status(connector, create(small, 9, **tiny)) == -Errno.ENOSPC
        assert await status(connector, DbufDestroy(0, 1)) == 0
        assert await status(connector, create(large, 9)) == -Errno.ENOSPC
        assert stage.held == {"connectors": 1, "buffers": 7, "pages": 7}
        for fb in range(1, 13):
            assert await status(connector, attach(fb, 2, 1, 1)) == 0
        for dbuf in (2, 3):
            assert await status(connector, attach(13, dbuf, 1, 1)) == -Errno.ENOSPC
        assert await status(connector, FbDetach(0, 12)) == 0
        assert await status(connector, attach(13, 3, 1, 1)) == 0
        assert await status(connector, config(13, width=1, height=1)) == 0
        assert await status(connector, PageFlip(0, 1)) == 0


@row(
    "create, attach and destroy a buffer of one pixel, a thousand times, with the ring always full",
    "served; the memory in use does not grow",
)
async def test_c10_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screens: Screens) -> None:
    unhurried = Limits(requests_per_second=1e9)
    async with Stage.on(screens, tmp_path, monkeypatch, limits=unhurried) as stage, stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = raw_buffer(bad, 4096)
        connector.channel.fired = lambda: False
        requests = (
            create(buffer, 1, width=1, height=1),
            attach(1, 1, 1, 1),
            DbufDestroy(0, 1),
        )
        encoded = [encode_request(request) for request in requests]
        sent = 0
        while sent < 3000:
            for message in encoded * 10:
                connector.ring.put(message)
            connector.channel.notify()
            sent += 30
            await until(lambda: connector.ring_page.load(8) == sent)  # noqa: B023 - waited for
            while (slot := connector.ring.take()) is not None:
                assert decode_response(slot).status == 0
            connector.ring.final_check()
        assert stage.held == {"connectors": 1}


@row(
    "the flag REQ_ALLOC although `be-alloc` is 0 in XenStore",
    "ignored, since Linux leaves old bytes there: the guest's own pages",
)
async def test_c11_flag_alone(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        buffer = raw_buffer(bad)
        assert await status(connector, create(buffer, flags=REQ_ALLOC)) == 0
        assert stage.held["pages"] == 3
        assert not stage.world.hypervisor.domain.grants


@row("REQ_ALLOC with `be-alloc` 1 in XenStore, but the configuration does not allow it", "EOPNOTSUPP")
async def test_c11_not_allowed(stage: Stage) -> None:
    async with stage.bad(be_alloc=True) as bad:
        await refused(stage, bad, Errno.EOPNOTSUPP, {"flags": REQ_ALLOC}, {"flags": U32})
        assert not stage.world.hypervisor.domain.grants


@row(
    "REQ_ALLOC of 16384x16384, and then many times of less",
    "ENOSPC at the guest's quota for such pages (`alloc-pages`)",
)
async def test_c12_allocate_everything(allowed: Stage) -> None:
    async with allowed.bad(be_alloc=True) as bad:
        connector = bad.display.connectors[0]
        directories = [raw_buffer(bad, 2048 * 4096) for _ in range(2)]
        buffer = directories[0]
        huge = {"width": 16384, "height": 16384, "buffer_sz": 1 << 30, "flags": REQ_ALLOC}
        assert await status(connector, create(buffer, **huge)) == -Errno.ENOSPC
        large = {"width": 2048, "height": 1024, "buffer_sz": 1 << 23, "flags": REQ_ALLOC}
        answers = [await status(connector, create(buffer, cookie, **large)) for cookie in range(1, 11)]
        assert answers == [0] * 8 + [-Errno.ENOSPC] * 2
        assert allowed.held == {"connectors": 1, "buffers": 8, "alloc_pages": 16384}
        assert await status(connector, DbufDestroy(0, 3)) == 0
        assert await status(connector, create(buffer, 11, **large)) == 0


@row(
    "sizes and strides that the output cannot show",
    "EINVAL, with the reason of the output in the log; 0 if another output of the device can show them",
)
async def test_c13_what_the_output_cannot(stage: Stage, monkeypatch: pytest.MonkeyPatch, screens: Screens) -> None:
    kind: type[Output] = HeadlessOutput if screens == "headless" else DrmOutput
    real = kind.attach

    async def picky(self: Output, *arguments: object) -> object:
        if self.name == "bad":
            raise SinkError(Errno.EINVAL, "a stride that this card cannot scan out")
        return await real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "attach", picky)
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        assert await status(connector, create(raw_buffer(bad))) == 0
        assert await status(connector, attach(FB)) == -Errno.EINVAL
        assert stage.held == {"connectors": 1, "buffers": 1, "pages": 3}
    async with stage.bad(spec("bad"), spec("worse")) as bad:
        connector = bad.display.connectors[0]
        assert await status(connector, create(raw_buffer(bad))) == 0
        assert await status(connector, attach(FB)) == 0
        assert await status(connector, config(FB)) == -Errno.EINVAL
        assert await status(bad.display.connectors[1], config(FB)) == 0
