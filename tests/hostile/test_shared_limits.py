"""Rows about what all guests share: the files, threads and memory of displbe."""

from __future__ import annotations

from pathlib import Path

import trio
from hostile.rows import row
from hostile.stage import BAD, GOOD, Stage, attach, config, create, raw_buffer, status
from scenario.world import spec

from displbe.backend.quota import Limits
from displbe.sim.guest import DisplayBuffer
from displbe.wire.displif import DbufDestroy, FbAttach, SetConfig
from displbe.wire.errors import Errno
from displbe.wire.formats import fourcc

OFF = SetConfig(0, 0, 0, 0, 0, 0, 0)
WIDTH, HEIGHT = 3840, 2160
COPY = WIDTH * HEIGHT * 4 // 4096
"""Pages of a copy of one frame."""


@row(
    "eight connectors of 3840x2160 show one buffer, in a format that displbe has to convert, so that each frame is copied",
    "copies up to the guest's quota (`copy-pages`); other outputs stay dark or without their picture, and `displbectl status` says why",
)
async def test_c14_copies_for_eight_large_screens(tmp_path: Path) -> None:
    limit = 2 * COPY + COPY // 2
    async with Stage.set(tmp_path, limits=Limits(copy_pages=limit)) as stage:
        names = [f"bad-{number}" for number in range(8)]
        async with stage.bad(*(spec(name, WIDTH, HEIGHT) for name in names)) as bad:
            first, *_ = connectors = bad.display.connectors
            buffer = DisplayBuffer(bad.domain, WIDTH * HEIGHT * 3)
            shape = {"width": WIDTH, "height": HEIGHT, "bpp": 24}
            assert await status(first, create(buffer, 1, **shape)) == 0
            assert await status(first, FbAttach(0, 1, 2, WIDTH, HEIGHT, fourcc("RG24"))) == 0
            most = 0
            for _ in range(2):
                for connector in connectors:
                    assert await status(connector, config(2, 0, 0, WIDTH, HEIGHT, 24)) == 0
                    await connector.flip(2)
                for connector in connectors:
                    assert await status(connector, OFF) == 0  # the headless output keeps a copy of its last frame
                    most = max(most, stage.held["copy_pages"])
            assert most == 2 * COPY <= limit
            kept = [name for name in names if stage.world.output(name).picture() is not None]
            assert len(kept) == 2
        pool = stage.world.daemon.quotas.total.pools["memory"]
        assert pool.used < COPY


@row(
    "display buffers of one page, when displbe may open no more files for guests (`LimitNOFILE=` in displbe.service)",
    "ENOSPC before displbe opens a file, with the way out in the log; every other guest still gets some buffers",
)
async def test_c15_files_of_all_guests(stage: Stage) -> None:
    total = stage.world.daemon.quotas.total
    async with stage.bad() as bad:
        first = bad.display.connectors[0]
        files = total.pools["files"]
        files.limit = files.used + 20
        statuses: list[int] = []
        while not statuses or statuses[-1] == 0:
            statuses.append(await status(first, create(raw_buffer(bad), 1 + len(statuses))))
        assert statuses[-1] == -Errno.ENOSPC
        assert files.used <= files.limit
        good = stage.good.display.connectors[0]
        await good.order(create(raw_buffer(stage.good), 0x7777))
        await good.order(DbufDestroy(0, 0x7777))
        assert await status(first, DbufDestroy(0, 1)) == 0
        assert await status(first, create(raw_buffer(bad), 1)) == 0
        assert await status(first, attach(5, 1)) == 0


@row(
    "more connectors than displbe may start threads for (`TasksMax=` in displbe.service)",
    "refused, with the way out in the `error` node; displbe connects the device as soon as there are threads for it",
)
async def test_k13_threads_of_all_guests(stage: Stage) -> None:
    threads = stage.world.daemon.quotas.total.pools["threads"]
    before = threads.limit
    async with stage.booted(*(spec(f"bad-{number}") for number in range(8))) as bad:
        threads.limit = threads.used + 7
        await stage.refused("all guests together reach the limit of")
        assert "raise TasksMax= in displbe.service" in (stage.world.error(BAD) or "")
        assert stage.world.held(GOOD)["connectors"] == 1
        threads.limit = before
        with trio.fail_after(30):
            await bad.display.connected.wait()
