"""Table B: page directories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hostile.rows import row
from hostile.stage import BAD, GOOD, Stage, create, forked, page_of, raw_buffer, status
from scenario.world import descriptors, exchange

from displbe.backend.guests import GuestSettings
from displbe.sim.guest import Guest
from displbe.wire.displif import REQ_ALLOC, DbufDestroy, GetEdid, decode_response
from displbe.wire.errors import Errno
from displbe.wire.pgdir import REFS_PER_PAGE, encode_directory
from displbe.wire.ring import PAGE_SIZE

COOKIE = 0x1000
GONE = DbufDestroy(0, COOKIE)


def directory(guest: Guest, *pages: bytes, writable: bool = True) -> int:
    """Grant directory pages with this content. Return the reference of the first one."""
    first = guest.domain.allocate(len(pages))
    refs = [guest.domain.grant(first + n, 0, writable=writable) for n in range(len(pages))]
    for n, content in enumerate(pages):
        guest.domain.pages(first + n, 1)[:] = content
    return refs[0]


def listing(*refs: int, following: int = 0) -> bytes:
    """Return one directory page with these references, and with `following` as the reference of the next page."""
    return encode_directory(list(refs), [0, following][: 1 + bool(following)])[0]


async def refused(stage: Stage, guest: Guest, code: Errno, **changes: int) -> None:
    """Check that a DBUF_CREATE with these changes gets this error and leaves nothing held, and that a valid one is served after it."""
    connector = guest.display.connectors[0]
    buffer = raw_buffer(guest)
    held = stage.ledger
    assert await status(connector, create(buffer, **changes)) == -code
    assert stage.ledger == held
    assert stage.held == {"connectors": 1}
    assert await status(connector, create(buffer)) == 0
    assert await status(connector, GONE) == 0
    buffer.free()


@row("a directory page names itself as the next; two pages name each other", "EINVAL")
async def test_b1_circles(stage: Stage) -> None:
    async with stage.bad() as bad:
        big = REFS_PER_PAGE * 4 * PAGE_SIZE
        data = raw_buffer(bad).refs[0]
        one = directory(bad, listing(data))
        page_of(bad, one)[:4] = one.to_bytes(4, "little")
        await refused(stage, bad, Errno.EINVAL, buffer_sz=big, gref_directory=one)
        two = directory(bad, listing(*[data] * REFS_PER_PAGE), listing(*[data] * REFS_PER_PAGE))
        page_of(bad, two)[:4] = (two + 1).to_bytes(4, "little")
        page_of(bad, two + 1)[:4] = two.to_bytes(4, "little")
        await refused(stage, bad, Errno.EINVAL, buffer_sz=big, gref_directory=two)


@row("the chain ends before it has named all pages", "EINVAL")
async def test_b2_ends_early(stage: Stage) -> None:
    async with stage.bad() as bad:
        data = raw_buffer(bad).refs[0]
        first = directory(bad, listing(*[data] * REFS_PER_PAGE))
        await refused(stage, bad, Errno.EINVAL, buffer_sz=(REFS_PER_PAGE + 1) * PAGE_SIZE, gref_directory=first)


@row("the chain is longer than needed, with garbage in the rest", "served; displbe never looks at the rest")
async def test_b3_too_long(stage: Stage) -> None:
    async with stage.bad() as bad:
        buffer = raw_buffer(bad)
        first = directory(bad, listing(*buffer.refs, 0xDEAD, following=0xDEADBEEF))
        connector = bad.display.connectors[0]
        assert await status(connector, create(buffer, gref_directory=first)) == 0
        assert stage.held["pages"] == 3
        assert await status(connector, GONE) == 0
        buffer.free()


@row(
    "grant reference 0, a free one, one of another domain, one beyond the grant table, one granted to a third domain",
    "EINVAL; nothing stays mapped",
)
async def test_b4_wrong_references(stage: Stage) -> None:
    async with stage.bad() as bad:
        good = stage.good.display
        buffer = raw_buffer(bad)
        third = bad.domain.grant(0, GOOD)
        theirs = max(stage.good.domain.grants)
        assert theirs not in bad.domain.grants or bad.domain.grants.pop(theirs)
        assert good.connectors[0].req_ref
        for ref in (0, 7, 100_000, theirs, 0xFFFFFFFF, third):
            for at in range(3):
                refs = [*buffer.refs]
                refs[at] = ref
                await refused(stage, bad, Errno.EINVAL, gref_directory=directory(bad, listing(*refs)))
            await refused(stage, bad, Errno.EINVAL, gref_directory=ref)


@row("the same reference 1,048,576 times: `buffer_sz` 4 GiB - 1", "ENOSPC, before displbe maps anything")
async def test_b5_one_reference_a_million_times(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage.bad() as bad:
        mapped: list[int] = []
        hypervisor = stage.world.hypervisor
        map_page = hypervisor.map_page

        def noted(domid: int, ref: int, *, writable: bool) -> object:
            if domid == BAD and ref == endless:
                mapped.append(ref)
            return map_page(domid, ref, writable=writable)

        monkeypatch.setattr(hypervisor, "map_page", noted)
        buffer = raw_buffer(bad)
        endless = directory(bad, listing(*[buffer.refs[0]] * REFS_PER_PAGE))
        page_of(bad, endless)[:4] = endless.to_bytes(4, "little")
        await refused(stage, bad, Errno.ENOSPC, buffer_sz=0xFFFFFFFF, gref_directory=endless)
        assert not mapped


@row("the same reference several times, within the quota", "served; each one counts as a page of the quota")
async def test_b5_one_reference_three_times(stage: Stage) -> None:
    async with stage.bad() as bad:
        buffer = raw_buffer(bad)
        connector = bad.display.connectors[0]
        first = directory(bad, listing(*[buffer.refs[0]] * 3))
        assert await status(connector, create(buffer, gref_directory=first)) == 0
        assert stage.held["pages"] == 3
        assert await status(connector, GONE) == 0
        buffer.free()


@row("another vCPU rewrites a directory page while displbe reads it", "displbe uses one consistent copy: 0 or EINVAL")
async def test_b6_directory_rewritten(stage: Stage) -> None:
    async with stage.bad() as bad:
        buffer = raw_buffer(bad)
        connector = bad.display.connectors[0]
        right, wrong = listing(*buffer.refs), listing(0xDEAD, 0xDEAD, 0xDEAD, following=0xBEEF)
        first = directory(bad, right)
        page = page_of(bad, first)

        def rewrite() -> None:
            page[:] = right
            page[:] = wrong

        found = set()
        with forked(rewrite):
            for _ in range(150):
                found.add(answer := await status(connector, create(buffer, gref_directory=first)))
                if answer == 0:
                    assert await status(connector, GONE) == 0
        assert found == {0, -Errno.EINVAL}, "both kinds of copy were seen"
        assert stage.held == {"connectors": 1}
        buffer.free()


@row("a directory page is granted read-only", "served: displbe maps it read-only")
async def test_b7_read_only_directory(stage: Stage) -> None:
    async with stage.bad() as bad:
        buffer = raw_buffer(bad)
        connector = bad.display.connectors[0]
        first = directory(bad, listing(*buffer.refs), writable=False)
        assert await status(connector, create(buffer, gref_directory=first)) == 0
        assert await status(connector, GONE) == 0
        buffer.free()


@pytest.fixture
async def allowed(tmp_path: Path) -> AsyncIterator[Stage]:
    """A stage on which the hostile guest may use be-alloc. The model of a card has no pages that Xen could grant."""
    before = descriptors()
    async with Stage.set(tmp_path, settings=GuestSettings(be_alloc=True)) as stage:
        yield stage
    assert descriptors() == before


@row(
    "be-alloc: a directory that is not writable, ends early, contains a loop, or is not granted",
    "EINVAL; displbe frees the memory",
)
async def test_b8_be_alloc_directory(allowed: Stage) -> None:
    async with allowed.bad(be_alloc=True) as bad:
        connector = bad.display.connectors[0]
        read_only = directory(bad, bytes(PAGE_SIZE), writable=False)
        circle = directory(bad, bytes(PAGE_SIZE))
        page_of(bad, circle)[:4] = circle.to_bytes(4, "little")
        short = directory(bad, bytes(PAGE_SIZE))
        big = {"width": 2048, "height": 1024, "buffer_sz": 2048 * 1024 * 4}
        buffer = raw_buffer(bad)
        host = allowed.world.hypervisor.domain
        for changes in (
            {"gref_directory": read_only},
            {"gref_directory": 0},
            {"gref_directory": 0xFFFFFFFF},
            big | {"gref_directory": short},
            big | {"gref_directory": circle},
        ):
            assert await status(connector, create(buffer, flags=REQ_ALLOC, **changes)) == -Errno.EINVAL
            assert allowed.held == {"connectors": 1}
            assert not host.grants
        assert await status(connector, create(buffer, flags=REQ_ALLOC, gref_directory=short)) == 0
        assert len(host.grants) == 3
        assert await status(connector, GONE) == 0
        assert not host.grants


@row(
    "be-alloc: the same directory page for two buffers",
    "served: displbe writes the references of each buffer there; the guest reads them before the next request",
)
async def test_b8_be_alloc_directory_shared(allowed: Stage) -> None:
    async with allowed.bad(be_alloc=True) as bad:
        connector = bad.display.connectors[0]
        shared = directory(bad, bytes(PAGE_SIZE))
        buffer = raw_buffer(bad)
        host = allowed.world.hypervisor.domain
        listed = []
        for cookie in (1, 2):
            request = create(buffer, cookie, flags=REQ_ALLOC, gref_directory=shared)
            assert await status(connector, request) == 0
            listed.append(bytes(page_of(bad, shared)[4:16]))
        assert listed[0] != listed[1]
        assert len(host.grants) == 6
        for cookie in (1, 2):
            assert await status(connector, DbufDestroy(0, cookie)) == 0


@row("GET_EDID with `buffer_sz` 4 GiB - 1", "served; displbe maps only as many pages as the EDID needs")
async def test_b9_edid_into_4_gib(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage.bad() as bad:
        mapped: list[int] = []
        hypervisor = stage.world.hypervisor
        map_page = hypervisor.map_page

        def noted(domid: int, ref: int, *, writable: bool) -> object:
            mapped.append(ref)
            return map_page(domid, ref, writable=writable)

        monkeypatch.setattr(hypervisor, "map_page", noted)
        target = bad.domain.grant(bad.domain.allocate(1), 0)
        first = directory(bad, listing(target))
        page_of(bad, target)[:] = b"\xaa" * PAGE_SIZE
        answer = decode_response(await exchange(bad.display.connectors[0], GetEdid(0, 0xFFFFFFFF, first)))
        assert (answer.status, answer.edid_sz) == (0, 128)
        assert mapped == [first, target]
        page = page_of(bad, target)
        assert bytes(page[:8]) == b"\0\xff\xff\xff\xff\xff\xff\0"
        assert bytes(page[128:]) == b"\xaa" * (PAGE_SIZE - 128)


@row(
    "GET_EDID with `buffer_sz` below 128, an invalid directory, or pages granted read-only",
    "EINVAL; displbe writes nothing",
)
async def test_b9_edid_into_nothing(stage: Stage) -> None:
    async with stage.bad() as bad:
        connector = bad.display.connectors[0]
        page = bad.domain.allocate(1)
        right, read_only = bad.domain.grant(page, 0), bad.domain.grant(page, 0, writable=False)
        first = directory(bad, listing(right))
        for size, ref in (
            (0, first),
            (1, first),
            (127, first),
            (32768, 0),
            (32768, 0xFFFFFFFF),
            (128, directory(bad, listing(0))),
            (128, directory(bad, listing(read_only))),
        ):
            answer = decode_response(await exchange(connector, GetEdid(0, size, ref)))
            assert (answer.status, answer.edid_sz) == (-Errno.EINVAL, 0)
        assert bytes(page_of(bad, right)) == bytes(PAGE_SIZE)
        assert decode_response(await exchange(connector, GetEdid(0, 128, first))).edid_sz == 128
