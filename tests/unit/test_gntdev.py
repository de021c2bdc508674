"""Grants over a fake gntdev: the ioctls it gets, and that nothing stays open when it refuses."""

from __future__ import annotations

import errno
import os
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from struct import unpack_from
from typing import Any

import pytest
import trio
import trio.testing
from conformance.world import descriptors
from hostile.kernel import is_heavy
from memory_watch import heavy

from displbe.xen import gntdev, host
from displbe.xen.evtchn import EventChannels
from displbe.xen.gntdev import GrantedPages, map_page, probe, share_dmabuf
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory
from displbe.xen.port import HypervisorError, Ledger

GUEST = 5


class Kernel:
    """Replaces the fcntl module and the file, with the rules of drivers/xen/gntdev.c that matter here."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.reserved: dict[int, list[tuple[int, int]]] = {}
        self.exported: list[int] = []
        self.shared: dict[int, list[int]] = {}
        self.failures: defaultdict[int, deque[int]] = defaultdict(deque)
        """The errnos that the next calls of an ioctl fail with (0: success)."""
        self.unmappable: deque[int] = deque()
        """The same for mmap."""
        self.first = PAGE_SIZE
        """The first index that is given out. Linux's is 0, which could pass for no index at all."""
        self.mapped: list[bool] = []
        """Whether each mapping was writable."""
        self.open_fails = 0

    def open(self) -> int:
        if self.open_fails:
            raise OSError(self.open_fails, os.strerror(self.open_fails))
        fd = os.memfd_create("gntdev", os.MFD_CLOEXEC)
        os.ftruncate(fd, 64 << 20)
        return fd

    def ioctl(self, fd: int, number: int, argument: bytearray) -> int:
        os.fstat(fd)
        if is_heavy(number, argument):
            heavy(f"gntdev's ioctl {number:#x}")
        self.asked.append((number, unpack_from(f"={len(argument) // 4}I", argument)))
        if self.failures[number] and (error := self.failures[number].popleft()):
            raise OSError(error, os.strerror(error))
        return int(getattr(self, f"_{number:#x}")(argument) or 0)

    def _0x184700(self, argument: bytearray) -> None:
        """MAP_GRANT_REF"""
        count = unpack_from("=I", argument)[0]
        assert len(argument) == 16 + 8 * count
        index = self.first + PAGE_SIZE * sum(len(refs) for refs in self.reserved.values())
        self.reserved[index] = [unpack_from("=II", argument, 16 + 8 * n) for n in range(count)]
        argument[8:16] = index.to_bytes(8, "little")

    def _0x104701(self, argument: bytearray) -> None:
        """UNMAP_GRANT_REF"""
        index, count, _ = unpack_from("=QII", argument)
        assert len(self.reserved.pop(index)) == count

    def _0x144709(self, argument: bytearray) -> None:
        """DMABUF_EXP_FROM_REFS"""
        flags, count, _, domid = unpack_from("=IIII", argument)
        assert (flags, domid, len(argument)) == (0, GUEST, 16 + 4 * count)
        fd = os.memfd_create("dma-buf", os.MFD_CLOEXEC)
        os.ftruncate(fd, count * PAGE_SIZE)
        self.exported.append(fd)
        argument[8:12] = fd.to_bytes(4, "little")

    def _0x8470a(self, argument: bytearray) -> None:
        """DMABUF_EXP_WAIT_RELEASED"""
        fd, wait = unpack_from("=II", argument)
        assert fd in self.exported
        assert 0 < wait <= 1000, "a cancelled wait is to be noticed soon"
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

    def _0x14470b(self, argument: bytearray) -> None:
        """DMABUF_IMP_TO_REFS"""
        fd, count, domid, _ = unpack_from("=IIII", argument)
        assert domid == GUEST
        self.shared[fd] = [100 + n for n in range(count)]
        for n, ref in enumerate(self.shared[fd]):
            argument[16 + 4 * n : 20 + 4 * n] = ref.to_bytes(4, "little")

    def _0x8470c(self, argument: bytearray) -> None:
        """DMABUF_IMP_RELEASE"""
        if unpack_from("=I", argument)[0] not in self.shared:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        del self.shared[unpack_from("=I", argument)[0]]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """The fake kernel. At the end, nothing may be reserved, and no file be open that was not open before."""
    kernel = Kernel()

    def mapping(fd: int, pieces: Sequence[tuple[int, int]], *, writable: bool) -> Mapping:
        if kernel.unmappable and (error := kernel.unmappable.popleft()):
            raise OSError(error, os.strerror(error))
        kernel.mapped.append(writable)
        return Mapping(fd, pieces, writable=writable)

    monkeypatch.setattr(gntdev, "fcntl", kernel)
    monkeypatch.setattr(gntdev, "Mapping", mapping)
    monkeypatch.setattr(gntdev, "open_gntdev", kernel.open)
    before = descriptors()
    yield kernel
    assert kernel.reserved == {}
    assert kernel.shared == {}
    assert descriptors() == before


@pytest.fixture
def fd(kernel: Kernel) -> Iterator[int]:
    """An open gntdev file."""
    fd = kernel.open()
    yield fd
    os.close(fd)


async def opened(refs: Sequence[int], ledger: Ledger, *, dmabuf: bool = False) -> GrantedPages:
    """A buffer of the guest's."""
    return await GrantedPages.open(GUEST, refs, ledger, dmabuf=dmabuf)


def test_numbers() -> None:
    def ioc(number: int, size: int) -> int:
        return size << 16 | ord("G") << 8 | number

    assert ioc(0, 24) == gntdev.MAP_GRANT_REF
    assert ioc(1, 16) == gntdev.UNMAP_GRANT_REF
    assert ioc(9, 20) == gntdev.DMABUF_EXP_FROM_REFS
    assert ioc(10, 8) == gntdev.DMABUF_EXP_WAIT_RELEASED
    assert ioc(11, 20) == gntdev.DMABUF_IMP_TO_REFS
    assert ioc(12, 8) == gntdev.DMABUF_IMP_RELEASE


def test_a_page(kernel: Kernel, fd: int) -> None:
    ledger = Ledger()
    page = map_page(fd, GUEST, 8, ledger, writable=True)
    assert list(kernel.reserved.values()) == [[(GUEST, 8)]]
    page.store(16, 7)
    (index,) = kernel.reserved
    assert os.pread(fd, 4, index + 16) == b"\7\0\0\0"
    assert ledger == Ledger(pages=1)
    page.close()
    page.close()
    assert ledger == Ledger()


@pytest.mark.parametrize("writable", [False, True])
def test_a_page_is_mapped_as_it_is_asked_for(kernel: Kernel, fd: int, writable: bool) -> None:
    """A guest may grant a page read-only, and cannot be asked for more then."""
    map_page(fd, GUEST, 8, Ledger(), writable=writable).close()
    assert kernel.mapped == [writable]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOMEM, errno.EFAULT])
def test_a_refused_page(kernel: Kernel, fd: int, error: int) -> None:
    ledger = Ledger()
    kernel.failures[gntdev.MAP_GRANT_REF].append(error)
    kernel.unmappable += (error,)
    for _ in range(2):
        with pytest.raises(HypervisorError, match="cannot map grant 8 of domain 5: ") as refused:
            map_page(fd, GUEST, 8, ledger, writable=True)
        assert refused.value.number == error
        assert kernel.reserved == {}
        assert ledger == Ledger()


def test_a_paged_out_page_is_tried_again(kernel: Kernel, fd: int) -> None:
    kernel.unmappable += (errno.EAGAIN,) * 3
    map_page(fd, GUEST, 8, Ledger(), writable=False).close()
    kernel.unmappable += (errno.EAGAIN,) * 1000
    with pytest.raises(HypervisorError) as refused:
        map_page(fd, GUEST, 8, Ledger(), writable=False)
    assert refused.value.number == errno.EAGAIN
    assert len(kernel.unmappable) > 900, "not for ever"


async def test_a_buffer(kernel: Kernel) -> None:
    ledger = Ledger()
    buffer = await opened([30, 10, 20], ledger)
    assert list(kernel.reserved.values()) == [[(GUEST, 30), (GUEST, 10), (GUEST, 20)]]
    assert (await buffer.map()).size == buffer.size == 3 * PAGE_SIZE
    assert kernel.mapped == [False], "a guest's pixels are only read"
    assert ledger == Ledger(buffers=1, buffer_pages=3)
    await buffer.aclose()
    await buffer.aclose()
    assert ledger == Ledger()


async def test_a_shared_buffer(kernel: Kernel) -> None:
    """A compositor maps it writable, so this is tried, once. displbe itself reads it."""
    kernel.first = 0
    buffer = await GrantedPages.open(GUEST, [30, 10], Ledger(), dmabuf=False, shared=True)
    assert (kernel.mapped, kernel.reserved) == ([True], {})
    fd, offset = await buffer.shm_fd()
    assert (kernel.mapped, kernel.reserved, offset) == ([True], {0: [(GUEST, 30), (GUEST, 10)]}, 0)
    os.close(fd)
    kernel.reserved.clear()
    with (await buffer.map()).borrow() as view:
        assert view.readonly
    await buffer.aclose()


async def test_a_shared_buffer_that_is_not_at_the_files_beginning(kernel: Kernel) -> None:
    buffer = await GrantedPages.open(GUEST, [30, 10], Ledger(), dmabuf=False)
    await buffer.map()
    with pytest.raises(HypervisorError, match="not at offset 0"):
        await buffer.shm_fd()
    assert kernel.mapped == [False, True], "tried before the first use"
    await buffer.aclose()
    kernel.reserved.clear()


@pytest.mark.parametrize("dmabuf", [False, True])
async def test_a_refused_buffer(kernel: Kernel, dmabuf: bool) -> None:
    ledger = Ledger()
    kernel.failures[gntdev.DMABUF_EXP_FROM_REFS if dmabuf else gntdev.MAP_GRANT_REF].append(errno.EINVAL)
    with pytest.raises(HypervisorError, match="2 pages of domain 5: Invalid argument"):
        await opened([1, 2], ledger, dmabuf=dmabuf)
    assert ledger == Ledger()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE])
async def test_no_file_is_left_for_a_buffer(kernel: Kernel, error: int) -> None:
    ledger = Ledger()
    kernel.open_fails = error
    with pytest.raises(HypervisorError) as refused:
        await opened([1, 2], ledger)
    assert refused.value.number == error
    with pytest.raises(HypervisorError):
        async with share_dmabuf(GUEST, 3, 1):
            pytest.fail("shared")
    assert ledger == Ledger()


async def test_a_dmabuf(kernel: Kernel) -> None:
    ledger = Ledger()
    buffer = await opened(range(1, 2026), ledger, dmabuf=True)
    assert kernel.reserved == {}, "an export maps by itself"
    fd = await buffer.dmabuf()
    assert kernel.exported == [fd]
    (number, asked) = kernel.asked[0]
    assert (number, asked[4:]) == (gntdev.DMABUF_EXP_FROM_REFS, tuple(range(1, 2026)))
    await buffer.aclose()
    assert kernel.asked[-1][0] == gntdev.DMABUF_EXP_WAIT_RELEASED
    assert ledger == Ledger()


@pytest.mark.parametrize("ends", [0, errno.ENOENT])
async def test_closing_waits_for_the_dmabufs_last_user(kernel: Kernel, ends: int) -> None:
    ledger = Ledger()
    buffer = await opened([1], ledger, dmabuf=True)
    await buffer.map()
    kernel.failures[gntdev.DMABUF_EXP_WAIT_RELEASED] += (errno.ETIMEDOUT, errno.EINTR, errno.ETIMEDOUT, ends)
    with trio.CancelScope() as scope:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await buffer.aclose()
    assert [number for number, _ in kernel.asked].count(gntdev.DMABUF_EXP_WAIT_RELEASED) == 4
    assert ledger == Ledger()


async def test_waiting_for_the_dmabufs_last_user_can_be_cancelled(kernel: Kernel) -> None:
    """A compositor that hangs: no thread waits for it, and everything else is released when the wait is cancelled."""
    ledger = Ledger()
    buffer = await opened([1, 2], ledger, dmabuf=True)
    await buffer.map()
    kernel.failures[gntdev.DMABUF_EXP_WAIT_RELEASED] += (errno.ETIMEDOUT,) * 1000
    with trio.move_on_after(0.5) as scope:
        await buffer.aclose()
    assert scope.cancelled_caught
    assert ledger == Ledger()
    assert 0 < [number for number, _ in kernel.asked].count(gntdev.DMABUF_EXP_WAIT_RELEASED) < 10, "ever more slowly"
    await buffer.aclose()


async def test_a_dmabuf_whose_state_is_unknown(kernel: Kernel) -> None:
    ledger = Ledger()
    buffer = await opened([1], ledger, dmabuf=True)
    kernel.failures[gntdev.DMABUF_EXP_WAIT_RELEASED] += (errno.ENOMEM,)
    await buffer.aclose()
    assert ledger == Ledger()


async def test_a_guests_own_threads(kernel: Kernel) -> None:
    """Work on a buffer waits for a thread of its own guest only."""
    threads = trio.CapacityLimiter(1)
    made: list[GrantedPages] = []

    async def make() -> None:
        made.append(await GrantedPages.open(GUEST, [1], Ledger(), dmabuf=False, threads=threads))

    async def close() -> None:
        await made[0].aclose()

    for work in (make, close):
        threads.acquire_on_behalf_of_nowait("another request")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await trio.testing.wait_all_tasks_blocked()
            assert threads.statistics().tasks_waiting == 1
            await (await opened([2], Ledger())).aclose()
            threads.release_on_behalf_of("another request")


async def test_two_callers_map_once(kernel: Kernel) -> None:
    buffer = await opened([1], Ledger(), dmabuf=True)
    views: list[Memory] = []

    async def look() -> None:
        views.append(await buffer.map())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(look)
    assert len(kernel.reserved) == 1
    assert all(view is views[0] for view in views)
    views.clear()
    await buffer.aclose()


async def test_a_buffer_that_has_been_taken_back(kernel: Kernel) -> None:
    """An operator's picture may come when the guest has just taken its buffer back. Its pages are not mapped again, and it says why."""
    ledger = Ledger()
    buffer = await opened([8, 9], ledger)
    await buffer.aclose()
    asked = len(kernel.asked)
    for call in (buffer.map, buffer.dmabuf, buffer.shm_fd):
        with pytest.raises(HypervisorError, match="the guest has taken the buffer back"):
            await call()
    assert len(kernel.asked) == asked
    assert ledger == Ledger()


async def test_sharing(kernel: Kernel) -> None:
    async with share_dmabuf(GUEST, 77, 3) as refs:
        assert refs == [100, 101, 102]
        assert 77 in kernel.shared
    assert kernel.shared == {}
    with pytest.raises(ZeroDivisionError):
        await _fail_while_sharing()


async def _fail_while_sharing() -> None:
    async with share_dmabuf(GUEST, 77, 3):
        raise ZeroDivisionError


async def test_refused_sharing(kernel: Kernel) -> None:
    kernel.failures[gntdev.DMABUF_IMP_TO_REFS].append(errno.EINVAL)
    with pytest.raises(HypervisorError, match="dma-buf of 3 pages to domain 5"):
        async with share_dmabuf(GUEST, 77, 3):
            pytest.fail("shared")


def test_probe(kernel: Kernel, fd: int) -> None:
    assert probe(fd)
    kernel.failures[gntdev.DMABUF_IMP_RELEASE].append(errno.ENOTTY)
    assert not probe(fd)


# The host on top of it


@pytest.fixture
def devices(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """/dev/xen with the fake gntdev, and an evtchn on which nothing fires."""
    monkeypatch.setattr(host, "EventChannels", lambda ledger: EventChannels(ledger, "/dev/zero"))
    return kernel


async def test_xenstore_that_cannot_be_reached(devices: Kernel, tmp_path: Any) -> None:
    machine = host.Host(str(tmp_path / "nowhere"))
    with pytest.raises(BaseExceptionGroup) as failed:
        await machine.run()
    assert failed.group_contains(host.NoXen, match="XenStore cannot be reached")


def test_what_the_host_offers(devices: Kernel, tmp_path: Any) -> None:
    devices.failures[gntdev.DMABUF_IMP_RELEASE].append(errno.ENOTTY)
    machine = host.Host(str(tmp_path / "nowhere"))
    assert not machine.abilities.dmabuf_export
    assert "CONFIG_XEN_GNTDEV_DMABUF" in machine.abilities.reason
    machine._channels.close()
    os.close(machine._gntdev)


async def test_the_reason_for_no_dmabuf(devices: Kernel, tmp_path: Any) -> None:
    """A buffer on a host that has no dma-bufs gives the host's reason, as be-alloc does, without asking the kernel."""
    devices.failures[gntdev.DMABUF_IMP_RELEASE].append(errno.ENOTTY)
    machine = host.Host(str(tmp_path / "nowhere"))
    buffer = await machine.map_buffer(GUEST, [1, 2], dmabuf=False)
    with pytest.raises(HypervisorError, match="CONFIG_XEN_GNTDEV_DMABUF") as refused:
        await buffer.dmabuf()
    assert refused.value.code == errno.EOPNOTSUPP
    with pytest.raises(
        HypervisorError, match="no be-alloc: this kernel is built without CONFIG_XEN_GNTDEV_DMABUF"
    ) as refused:
        machine.share_dmabuf(GUEST, 77, 3)
    assert refused.value.code == errno.EOPNOTSUPP
    assert not {gntdev.DMABUF_EXP_FROM_REFS, gntdev.DMABUF_IMP_TO_REFS} & {number for number, _ in devices.asked}
    assert (await buffer.map()).size == 2 * PAGE_SIZE
    await buffer.aclose()
    assert machine.ledger == Ledger()
    machine._channels.close()
    os.close(machine._gntdev)


def test_no_devices(kernel: Kernel, tmp_path: Any) -> None:
    kernel.open_fails = errno.ENOENT
    with pytest.raises(host.NoXen, match="xen_gntdev"):
        host.Host(str(tmp_path / "nowhere"))
