"""Conformance of port.Page and port.GuestBuffer."""

from __future__ import annotations

import os
import random

import pytest
import trio
from conformance.peer import PAGE_SIZE, STRANGER
from conformance.world import World, descriptors
from memory_watch import content

from displbe.xen.memory import Mapping
from displbe.xen.port import HypervisorError, Ledger

FRAME = 2025
"""Pages of a 1920x1080 XRGB8888 buffer."""
NO_REF = 0xFFFFFF


def pattern(number: int) -> bytes:
    """Return the content of page `number` of a buffer, different for each page."""
    return number.to_bytes(8, "little") * (PAGE_SIZE // 8)


def scattered(world: World, pages: int, *, writable: bool = False) -> tuple[list[int], list[int]]:
    """Grant pages with a pattern each; return the references as granted, and in the order of a buffer."""
    granted = world.peer.grant(pages, writable=writable)
    refs = random.Random(pages).sample(granted, pages)
    for number, ref in enumerate(refs):
        world.peer.write(ref, pattern(number))
    return granted, refs


async def test_a_writable_page_is_shared_in_both_directions(world: World) -> None:
    (ref,) = granted = world.peer.grant(1)
    page = world.hypervisor.map_page(world.peer.domid, ref, writable=True)
    assert world.hypervisor.ledger == Ledger(pages=1)
    world.peer.write(ref, b"from the peer")
    assert page.copy(0, 13) == b"from the peer"
    page.write(4000, b"from us")
    page.store(100, 0xDEADBEEF)
    page.fence()
    theirs = world.peer.read(ref)
    assert theirs[4000:4007] == b"from us"
    assert theirs[100:104] == bytes.fromhex("efbeadde")
    world.peer.write(ref, b"\x78\x56\x34\x12")
    assert page.load(0) == 0x12345678
    assert page.copy(0, PAGE_SIZE) == world.peer.read(ref)
    page.close()
    assert world.hypervisor.ledger == Ledger()
    assert await world.peer.take_back(granted)


async def test_a_page_mapped_read_only(world: World) -> None:
    (ref,) = world.peer.grant(1, writable=False)
    page = world.hypervisor.map_page(world.peer.domid, ref, writable=False)
    world.peer.write(ref, b"\x01\x00\x00\x00seen")
    assert (page.load(0), page.copy(4, 4)) == (1, b"seen")
    with pytest.raises(TypeError):
        page.write(0, b"x")
    page.close()


async def test_a_read_only_grant_cannot_be_mapped_writable(world: World) -> None:
    (ref,) = world.peer.grant(1, writable=False)
    with pytest.raises(HypervisorError):
        world.hypervisor.map_page(world.peer.domid, ref, writable=True)
    assert world.hypervisor.ledger == Ledger()


async def test_pages_that_are_not_granted_to_us(world: World) -> None:
    (strangers,) = world.peer.grant(1, to=STRANGER)
    before = descriptors()
    for domid, ref in ((world.peer.domid, NO_REF), (world.peer.domid, strangers), (STRANGER, 8)):
        with pytest.raises(HypervisorError, match=f"of domain {domid}") as refused:
            world.hypervisor.map_page(domid, ref, writable=True)
        assert refused.value.number > 0
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before


async def test_a_closed_page_is_not_touched(world: World) -> None:
    (ref,) = world.peer.grant(1)
    page = world.hypervisor.map_page(world.peer.domid, ref, writable=True)
    page.close()
    page.close()
    assert world.hypervisor.ledger == Ledger()
    with pytest.raises(Exception):  # noqa: B017, PT011 - any exception, but no fault
        page.load(0)
    with pytest.raises(Exception):  # noqa: B017, PT011
        page.store(0, 1)
    with pytest.raises(Exception):  # noqa: B017, PT011
        page.write(0, b"x")
    assert page.copy(0, 4) == b""


async def test_pages_are_mapped_one_by_one(world: World) -> None:
    refs = world.peer.grant(20)
    before = descriptors()
    pages = [world.hypervisor.map_page(world.peer.domid, ref, writable=True) for ref in refs]
    for number, page in enumerate(pages):
        page.store(0, number)
    for number, page in enumerate(pages):
        if number % 2:
            page.close()
    assert [int.from_bytes(world.peer.read(ref, 4), "little") for ref in refs] == list(range(20))
    assert [page.load(0) for page in pages[::2]] == list(range(0, 20, 2))
    assert world.hypervisor.ledger.pages == 10
    assert descriptors() == before
    for page in pages:
        page.close()
    assert await world.peer.take_back(refs)


async def test_a_mapped_page_cannot_be_taken_back(world: World) -> None:
    """All other tests rely on this when they take pages back."""
    granted = world.peer.grant(3)
    page = world.hypervisor.map_page(world.peer.domid, granted[1], writable=True)
    assert not await world.peer.take_back(granted)
    page.close()


async def test_a_buffer_in_scattered_order(world: World) -> None:
    granted, refs = scattered(world, FRAME)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    assert (buffer.domid, buffer.size) == (world.peer.domid, FRAME * PAGE_SIZE)
    assert world.hypervisor.ledger == Ledger(buffers=1, buffer_pages=FRAME)
    memory = await buffer.map()
    assert memory is await buffer.map()
    assert memory.size == buffer.size
    assert content(memory) == b"".join(map(pattern, range(FRAME)))
    world.peer.write(refs[1000], b"later")
    assert content(memory, 1000 * PAGE_SIZE, 5) == b"later"
    await buffer.aclose()
    assert world.hypervisor.ledger == Ledger()
    assert await world.peer.take_back(granted)


async def test_a_buffers_view_is_read_only(world: World) -> None:
    granted, refs = scattered(world, 2)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    with (await buffer.map()).borrow() as view:
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1
    await buffer.aclose()
    assert await world.peer.take_back(granted)


@pytest.mark.parametrize("mapped", [True, False])
async def test_a_buffer_for_another_process_to_map(world: World, mapped: bool) -> None:
    granted = world.peer.grant(64)
    for number, ref in enumerate(granted):
        world.peer.write(ref, pattern(number))
    before = descriptors()
    buffer = await world.hypervisor.map_buffer(world.peer.domid, granted, dmabuf=False, shared=not mapped)
    for _ in range(2):  # twice, as when a compositor is restarted
        fd, offset = await buffer.shm_fd()
        mapping = Mapping(fd, [(offset, buffer.size)], writable=True)
        os.close(fd)
        assert content(mapping) == b"".join(map(pattern, range(64)))
        with mapping.borrow() as view:
            view[5 * PAGE_SIZE : 5 * PAGE_SIZE + 4] = b"seen"
        assert world.peer.read(granted[5], 4) == b"seen"
        world.peer.write(granted[5], pattern(5))
        mapping.close()
    assert content(await buffer.map(), 0, 8) == pattern(0)[:8]
    await buffer.aclose()
    assert descriptors() == before
    assert await world.peer.take_back(granted)


async def test_a_buffer_granted_read_only_cannot_be_shared(world: World) -> None:
    granted = world.peer.grant(16, writable=False)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, granted, dmabuf=False)
    before = descriptors()
    with pytest.raises(HypervisorError):
        await buffer.shm_fd()
    with pytest.raises(HypervisorError):
        await world.hypervisor.map_buffer(world.peer.domid, granted, dmabuf=False, shared=True)
    assert descriptors() == before
    await buffer.aclose()
    assert world.hypervisor.ledger == Ledger()
    assert await world.peer.take_back(granted)


@pytest.mark.parametrize("bad", [0, 517, 1023])
async def test_a_bad_reference_leaves_nothing_mapped(world: World, bad: int) -> None:
    granted, refs = scattered(world, 1024)
    before = descriptors()
    with pytest.raises(HypervisorError) as refused:
        await world.hypervisor.map_buffer(world.peer.domid, [*refs[:bad], NO_REF, *refs[bad + 1 :]], dmabuf=False)
    assert refused.value.number > 0
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    assert await world.peer.take_back(granted)


async def test_a_buffer_closed_twice(world: World) -> None:
    granted, refs = scattered(world, 4)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    await buffer.aclose()
    await buffer.aclose()
    assert world.hypervisor.ledger == Ledger()
    assert await world.peer.take_back(granted)


async def test_a_cancelled_close_closes(world: World) -> None:
    granted, refs = scattered(world, 64)
    before = descriptors()
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    with trio.CancelScope() as scope:
        scope.cancel()
        await buffer.aclose()
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    assert await world.peer.take_back(granted)


async def test_a_cancelled_mapping_leaves_nothing(world: World) -> None:
    granted, refs = scattered(world, 64)
    before = descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
        await buffer.aclose()  # the mapping may have been complete before the cancellation
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    assert await world.peer.take_back(granted)


async def test_buffers_at_once(world: World) -> None:
    several = [scattered(world, pages) for pages in (1, 2, 3, 50, 300, 301)]
    before = descriptors()

    async def use(pages: int, refs: list[int]) -> None:
        buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
        assert content(await buffer.map(), (pages - 1) * PAGE_SIZE) == pattern(pages - 1)
        await buffer.aclose()

    async with trio.open_nursery() as nursery:
        for _, refs in several:
            nursery.start_soon(use, len(refs), refs)
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    for granted, _ in several:
        assert await world.peer.take_back(granted)


# dma-bufs: some hosts only have them, as their abilities say. They are exported writable, from pages granted writable.


@pytest.mark.abilities(dmabuf_export=False)
async def test_no_export_of_dmabufs_where_it_is_not_supported(world: World) -> None:
    assert world.hypervisor.abilities.reason
    granted, refs = scattered(world, 4)
    before = descriptors()
    with pytest.raises(HypervisorError):
        await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=True)
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    with pytest.raises(HypervisorError):
        await buffer.dmabuf()
    assert content(await buffer.map()) == b"".join(map(pattern, range(4)))
    await buffer.aclose()
    assert await world.peer.take_back(granted)


@pytest.mark.abilities(dmabuf_import=False)
async def test_no_sharing_of_dmabufs_where_it_is_not_supported(world: World) -> None:
    with pytest.raises(HypervisorError):
        async with world.hypervisor.share_dmabuf(world.peer.domid, 0, 1):
            pytest.fail("shared")


async def test_sharing_a_file_that_is_no_dmabuf(world: World) -> None:
    file = os.memfd_create("no dma-buf")
    before = descriptors()
    with pytest.raises(HypervisorError):
        async with world.hypervisor.share_dmabuf(world.peer.domid, file, 1):
            pytest.fail("shared")
    assert descriptors() == before
    os.close(file)


@pytest.mark.abilities(dmabuf_export=True)
async def test_a_dmabuf(world: World) -> None:
    granted, refs = scattered(world, FRAME, writable=True)
    before = descriptors()
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=True)
    fd = await buffer.dmabuf()
    assert fd == await buffer.dmabuf()
    assert os.lseek(fd, 0, os.SEEK_END) == FRAME * PAGE_SIZE
    assert world.hypervisor.ledger == Ledger(buffers=1, buffer_pages=FRAME)
    with trio.fail_after(5):
        await buffer.aclose()
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    assert await world.peer.take_back(granted)


@pytest.mark.abilities(dmabuf_export=True)
async def test_a_dmabuf_of_a_mapped_buffer(world: World) -> None:
    granted, refs = scattered(world, 16, writable=True)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=False)
    assert os.lseek(await buffer.dmabuf(), 0, os.SEEK_END) == 16 * PAGE_SIZE
    assert content(await buffer.map()) == b"".join(map(pattern, range(16)))
    with trio.fail_after(5):
        await buffer.aclose()
    assert await world.peer.take_back(granted)


@pytest.mark.abilities(dmabuf_export=True)
async def test_closing_waits_until_the_dmabuf_is_released(world: World) -> None:
    granted, refs = scattered(world, 16, writable=True)
    buffer = await world.hypervisor.map_buffer(world.peer.domid, refs, dmabuf=True)
    held = os.dup(await buffer.dmabuf())
    closed = trio.Event()

    async def close() -> None:
        await buffer.aclose()
        closed.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await trio.sleep(0.6)
        assert not closed.is_set()
        assert world.hypervisor.ledger.buffers == 1
        os.close(held)
        with trio.fail_after(5):
            await closed.wait()
    assert world.hypervisor.ledger == Ledger()
    assert await world.peer.take_back(granted)


@pytest.mark.abilities(dmabuf_export=True)
async def test_a_bad_reference_leaves_nothing_exported(world: World) -> None:
    granted, refs = scattered(world, 64, writable=True)
    before = descriptors()
    with pytest.raises(HypervisorError):
        await world.hypervisor.map_buffer(world.peer.domid, [*refs[:30], NO_REF, *refs[31:]], dmabuf=True)
    assert world.hypervisor.ledger == Ledger()
    assert descriptors() == before
    assert await world.peer.take_back(granted)
