"""A simulated Xen: domains with memory, grants and event channels, and `xen.port.Hypervisor` for each domain.

A domain's memory is a memfd; a grant refers to one page of it. A domain's event channels are an eventfd and, as in Xen, two flags for
each port in shared memory: pending and masked. So a forked process can act as a guest.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from displbe.pump.library import ffi
from displbe.pump.native import Pump, SystemCalls
from displbe.threads import run_in_thread_or_here
from displbe.xen.barriers import SharedMemory, libatomic
from displbe.xen.evtchn import Channel, ChannelTable
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory, close_in_thread
from displbe.xen.port import Abilities, HypervisorError, Ledger, NotOffered
from displbe.xen.store import XenStore

from .store import StoreServer

__all__ = ["Domain", "Xen"]

PORTS: Final = 1024
MEMORY_PAGES: Final = 1 << 17
"""Pages of each domain: 512 MiB. A page uses memory once it is accessed."""
_SEQ_CST: Final = 5


class Grant:
    """One page that another domain may map."""

    def __init__(self, memfd: int, page: int, domid: int, *, writable: bool) -> None:
        self.memfd = memfd
        self.page = page
        self.domid = domid
        self.writable = writable
        self.mapped = 0


class Domain:
    """A domain: its memory, its grant table, its event channels.

    It has more than fifteen attributes, because it holds everything that the hypervisor keeps for a domain.
    """

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.backend = 0
        """The id of the domain that serves its PV devices."""
        self.memfd = os.memfd_create(f"dom{domid}", os.MFD_CLOEXEC)
        os.ftruncate(self.memfd, MEMORY_PAGES * PAGE_SIZE)
        self.memory = mmap.mmap(self.memfd, MEMORY_PAGES * PAGE_SIZE)
        self.grants: dict[int, Grant] = {}
        self._next_page = 0
        self._next_ref = itertools.count(8)  # Xen reserves the first ones
        self._free: dict[int, list[int]] = {}
        self.upcall = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._flags = mmap.mmap(-1, 2 * PORTS)
        self.pending = memoryview(self._flags)[:PORTS]
        self.masked = memoryview(self._flags)[PORTS:]
        self.peers: dict[int, tuple[Domain, int] | None] = {}
        self.offers: dict[int, int] = {}
        self._next_port = itertools.count(1)

    def close(self) -> None:
        """Destroy the domain and close its channels. Its memory exists as long as other domains map it."""
        for peer in filter(None, self.peers.values()):
            peer[0].peers[peer[1]] = None
        self.peers.clear()
        self.offers.clear()
        self.grants.clear()
        os.close(self.memfd)
        os.close(self.upcall)

    def allocate(self, pages: int) -> int:
        """Allocate consecutive zeroed pages, and return the number of the first one. Raises MemoryError."""
        if self._free.get(pages):
            first = self._free[pages].pop()
            self.memory[first * PAGE_SIZE : (first + pages) * PAGE_SIZE] = bytes(pages * PAGE_SIZE)
            return first
        first = self._next_page
        self._next_page += pages
        if self._next_page > MEMORY_PAGES:
            raise MemoryError("simulated domain out of memory")
        return first

    def free(self, first: int, pages: int) -> None:
        """Free pages of `allocate`."""
        self._free.setdefault(pages, []).append(first)

    def pages(self, first: int, count: int) -> memoryview:
        """Return the memory of consecutive pages, writable, as the domain itself sees it."""
        return memoryview(self.memory)[first * PAGE_SIZE : (first + count) * PAGE_SIZE]

    def grant(self, page: int, domid: int, *, writable: bool = True, memfd: int | None = None) -> int:
        """Grant a page of this domain, or of other memory (`memfd`), to the domain `domid`, and return the reference."""
        ref = next(self._next_ref)
        self.grants[ref] = Grant(self.memfd if memfd is None else memfd, page, domid, writable=writable)
        return ref

    def end_grant(self, ref: int) -> bool:
        """Revoke a grant and return True. While it is mapped, do nothing and return False (gnttab_end_foreign_access)."""
        if self.grants[ref].mapped:
            return False
        del self.grants[ref]
        return True

    def offer(self, domid: int) -> int:
        """Return a new unbound port, which `domid` may bind."""
        port = next(self._next_port)
        self.peers[port] = None
        self.offers[port] = domid
        self.masked[port] = 0
        self.pending[port] = 0
        return port

    def raise_port(self, port: int) -> None:
        """Make a port of this domain pending."""
        self.pending[port] = 1
        libatomic.atomic_thread_fence(_SEQ_CST)
        if not self.masked[port]:
            os.eventfd_write(self.upcall, 1)

    def unmask(self, port: int) -> None:
        """Unmask a port. If it is pending, it fires at once."""
        self.masked[port] = 0
        libatomic.atomic_thread_fence(_SEQ_CST)
        if self.pending[port]:
            os.eventfd_write(self.upcall, 1)

    def take_fired(self, room: int = PORTS) -> list[int]:
        """Mask pending unmasked ports, at most `room`, and return them."""
        try:
            os.eventfd_read(self.upcall)
        except BlockingIOError:
            return []
        pending, masked = self.pending, self.masked
        raw = bytes(pending)
        ports: list[int] = []
        port = raw.find(1)
        while port >= 0:
            if len(ports) == room:
                os.eventfd_write(self.upcall, 1)
                break
            if not masked[port]:
                masked[port] = 1
                pending[port] = 0
                ports.append(port)
            port = raw.find(1, port + 1)
        return ports


class SimChannel(Channel):
    """One bound port of a simulated domain."""

    def __init__(self, domain: Domain, port: int, fired: Callable[[], bool], table: ChannelTable) -> None:
        super().__init__(port, fired, table)
        self._domain = domain

    def notify(self) -> None:
        peer = self._domain.peers.get(self.port)
        if peer is not None:
            peer[0].raise_port(peer[1])

    def rearm(self) -> None:
        self._domain.unmask(self.port)


class SimChannels(ChannelTable):
    """The ports of a simulated domain."""

    def __init__(self, xen: Xen, domain: Domain, ledger: Ledger) -> None:
        super().__init__(os.dup(domain.upcall), ledger)
        self._xen = xen
        self._domain = domain

    def _fired(self) -> Iterable[int]:
        return self._domain.take_fired() if self.pump is None else self.pump.fired_ports()

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> Channel:
        """Bind another domain's unbound port. Raises HypervisorError EINVAL."""
        remote = self._xen.domains.get(domid)
        if remote is None or remote.offers.get(remote_port) != self._domain.domid or remote.peers.get(remote_port):
            raise HypervisorError(errno.EINVAL, f"cannot bind event channel {remote_port} of domain {domid}")
        port = self._domain.offer(domid)
        del self._domain.offers[port]
        self._domain.peers[port] = (remote, remote_port)
        remote.peers[remote_port] = (self._domain, port)
        channel = self.adopt(port, fired)
        self._domain.raise_port(port)
        return channel

    def adopt(self, port: int, fired: Callable[[], bool]) -> Channel:
        """Serve a port that this domain has offered."""
        channel = SimChannel(self._domain, port, fired, self)
        self.add(channel)
        return channel

    def _unbind(self, port: int) -> None:
        peer = self._domain.peers.pop(port, None)
        self._domain.offers.pop(port, None)
        if peer is not None:
            peer[0].peers[peer[1]] = None


class SimPage(SharedMemory):
    """One mapped page of another domain. It is the only borrower of its mapping."""

    def __init__(self, mapping: Mapping, grant: Grant, ledger: Ledger) -> None:
        self._borrowed = mapping.borrow()
        super().__init__(self._borrowed.__enter__())
        self._mapping: Mapping | None = mapping
        self._grant = grant
        self._ledger = ledger
        grant.mapped += 1
        ledger.pages += 1

    def close(self) -> None:
        if self._mapping is not None:
            self.forget()
            self._borrowed.__exit__()
            self._mapping.close()
            self._mapping = None
            self._grant.mapped -= 1
            self._ledger.pages -= 1


class SimBuffer:
    """Pages of a simulated guest (port.GuestBuffer)."""

    def __init__(
        self,
        domid: int,
        mapping: Mapping,
        grants: Sequence[Grant],
        ledger: Ledger,
        threads: trio.CapacityLimiter | None = None,
    ) -> None:
        self.domid = domid
        self.size = mapping.size
        self._mapping: Mapping | None = mapping
        self._grants = grants
        self._ledger = ledger
        self._threads = threads
        for grant in grants:
            grant.mapped += 1
        ledger.buffers += 1
        ledger.buffer_pages += len(grants)

    async def map(self) -> Memory:
        await trio.lowlevel.checkpoint()
        if self._mapping is None:
            raise HypervisorError(errno.EBADF, f"cannot map {len(self._grants)} pages of domain {self.domid}: closed")
        return self._mapping

    async def dmabuf(self) -> int:
        await trio.lowlevel.checkpoint()
        raise NotOffered(errno.ENOTTY, "the simulated Xen has no dma-bufs")

    async def shm_fd(self) -> tuple[int, int]:
        await trio.lowlevel.checkpoint()
        if not all(grant.writable for grant in self._grants):
            raise HypervisorError(errno.EINVAL, f"cannot share {len(self._grants)} pages of domain {self.domid}")
        runs = _runs([grant.page for grant in self._grants])
        if len(runs) > 1:
            raise NotOffered(errno.EINVAL, "the simulated Xen shares consecutive pages only")
        return os.dup(self._grants[0].memfd), runs[0][0]

    async def aclose(self) -> None:
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            try:
                await close_in_thread(mapping.close, self._threads)
            finally:
                for grant in self._grants:
                    grant.mapped -= 1
                self._ledger.buffers -= 1
                self._ledger.buffer_pages -= len(self._grants)


def _no_card(fd: int, argument: Any) -> int:
    """Refuse a commit: a simulated machine has no cards of its own."""
    return -errno.ENODEV


class SimHypervisor:
    """The simulated Xen as one domain sees it (port.Hypervisor)."""

    def __init__(self, xen: Xen, domain: Domain) -> None:
        self.domain = domain
        self.ledger = Ledger()
        self.abilities = Abilities(False, xen.sharing, "the simulated Xen exports no dma-bufs")
        self.store = XenStore(str(xen.server.socket_of(domain.domid)))
        self.channels = SimChannels(xen, domain, self.ledger)
        self._xen = xen
        self.commit: Callable[[int, Any], int] = _no_card
        """Makes the pump's commits. A model of cards may take its place, before `system_calls`."""

    def use_pump(self, pump: Pump | None) -> None:
        self.channels.pump = pump

    def system_calls(self) -> SystemCalls:
        """Return the pump's system calls on this machine. Other files than the event channels' are read as they are."""
        domain, channels = self.domain, self.channels

        def read(fd: int, data: Any, size: int) -> int:
            memory = ffi.buffer(data, size)
            if fd == channels.fd:
                ports = domain.take_fired(size // 4)
                raw = struct.pack(f"={len(ports)}I", *ports)
                memory[: len(raw)] = raw
                return len(raw) or -errno.EAGAIN
            try:
                return os.readv(fd, [memory])
            except OSError as error:
                return -(error.errno or errno.EIO)

        def rearm(fd: int, port: int) -> int:
            domain.unmask(port)
            return 0

        def notify(fd: int, port: int) -> int:
            peer = domain.peers.get(port)
            if peer is not None:
                peer[0].raise_port(peer[1])
            return 0

        return SystemCalls(read, rearm, notify, self.commit)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.store.run)
                nursery.start_soon(self.channels.run)
                task_status.started()
        finally:
            self.channels.close()

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> Channel:
        return self.channels.bind(domid, remote_port, fired)

    def _grants(self, domid: int, refs: Sequence[int], writable: bool) -> list[Grant]:
        owner = self._xen.domains.get(domid)
        found = [owner.grants.get(ref) for ref in refs] if owner is not None else []
        grants = [
            grant for grant in found if grant and grant.domid == self.domain.domid and (grant.writable or not writable)
        ]
        if owner is None or len(grants) != len(refs) or not refs:
            raise HypervisorError(errno.EINVAL, f"cannot map {len(refs)} pages of domain {domid}: Invalid argument")
        return grants

    def map_page(self, domid: int, ref: int, *, writable: bool) -> SimPage:
        (grant,) = self._grants(domid, [ref], writable)
        mapping = Mapping(grant.memfd, [(grant.page * PAGE_SIZE, PAGE_SIZE)], writable=writable)
        return SimPage(mapping, grant, self.ledger)

    async def map_buffer(
        self,
        domid: int,
        refs: Sequence[int],
        *,
        dmabuf: bool,
        shared: bool = False,
        threads: trio.CapacityLimiter | None = None,
    ) -> SimBuffer:
        await trio.lowlevel.checkpoint()
        if dmabuf:
            raise NotOffered(errno.ENOTTY, "the simulated Xen has no dma-bufs")
        grants = self._grants(domid, refs, writable=shared)
        mapping = Mapping(grants[0].memfd, _runs([grant.page for grant in grants]), writable=False)
        return SimBuffer(domid, mapping, grants, self.ledger, threads)

    def map_shared(self, domid: int, refs: Sequence[int]) -> SimBuffer:
        """Map many pages writable, as a guest maps a buffer that its backend has allocated."""
        grants = self._grants(domid, refs, writable=True)
        mapping = Mapping(grants[0].memfd, _runs([grant.page for grant in grants]), writable=True)
        return SimBuffer(domid, mapping, grants, self.ledger)

    @contextlib.asynccontextmanager
    async def share_dmabuf(
        self, domid: int, fd: int, pages: int, threads: trio.CapacityLimiter | None = None
    ) -> AsyncIterator[list[int]]:
        """port.Hypervisor.share_dmabuf, with a memfd in place of the dma-buf."""
        await trio.lowlevel.checkpoint()
        if not self.abilities.dmabuf_import:
            raise NotOffered(errno.ENOTTY, "this simulated Xen has no dma-bufs at all")
        if os.fstat(fd).st_size != pages * PAGE_SIZE:
            raise HypervisorError(errno.EINVAL, f"cannot grant a dma-buf of {pages} pages to domain {domid}")
        memory = os.dup(fd)
        refs = [self.domain.grant(page, domid, memfd=memory) for page in range(pages)]
        try:
            yield refs
        finally:
            for ref in refs:  # pages that are still mapped stay mapped
                self.domain.grants.pop(ref, None)
            with trio.CancelScope(shield=True):
                await run_in_thread_or_here(os.close, memory, limiter=threads)


def _runs(pages: Sequence[int]) -> list[tuple[int, int]]:
    """Return (offset, size) in bytes for each run of consecutive pages."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and sum(runs[-1]) == page * PAGE_SIZE:
            runs[-1] = (runs[-1][0], runs[-1][1] + PAGE_SIZE)
        else:
            runs.append((page * PAGE_SIZE, PAGE_SIZE))
    return runs


class Xen:
    """A simulated machine: its domains and its XenStore, whose sockets are in `folder`. `sharing` says whether it can grant dma-bufs."""

    def __init__(self, folder: Path, *, sharing: bool = True) -> None:
        self.server = StoreServer(folder)
        self.domains: dict[int, Domain] = {}
        self.sharing = sharing
        self._nursery: trio.Nursery | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Xen]:
        """Run Xen with domain 0 while the block lasts."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self.start_domain(0)
                yield self
            finally:
                nursery.cancel_scope.cancel()
                for domid in list(self.domains):
                    self.domains.pop(domid).close()

    async def start_domain(self, domid: int) -> Domain:
        """Start a domain and its XenStore socket."""
        assert self._nursery is not None
        domain = self.domains[domid] = Domain(domid)
        await self._nursery.start(self.server.serve, domid)
        return domain

    def stop_domain(self, domid: int) -> None:
        """Destroy a domain. Pages that other domains have mapped exist until those domains unmap them."""
        self.domains.pop(domid).close()
        self.server.release(domid)

    def hypervisor(self, domid: int) -> SimHypervisor:
        """Return Xen as seen from this domain."""
        return SimHypervisor(self, self.domains[domid])
