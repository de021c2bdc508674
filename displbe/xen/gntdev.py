"""Grants over /dev/xen/gntdev (include/uapi/xen/gntdev.h, drivers/xen/gntdev.c, gntdev-dmabuf.c).

MAP_GRANT_REF only reserves. mmap at the index that it returns maps the pages, all or none; a mapping without PROT_WRITE is read-only in
the hypervisor. Unmapping is munmap, then UNMAP_GRANT_REF.

Each guest buffer has its own gntdev file, so that closing the file releases everything. It also keeps exported dma-bufs apart: the
kernel identifies them by file and fd number, and fd numbers are reused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from struct import Struct
from typing import Final, TypeVar

import structlog
import trio

from displbe.shortage import shortage
from displbe.threads import NoThread, run_in_thread, run_in_thread_or_here

from .barriers import SharedMemory
from .memory import PAGE_SIZE, Mapping, Memory, close_in_thread
from .paths import GNTDEV
from .port import HypervisorError, Ledger

__all__ = ["GrantedPages", "GuestPage", "map_page", "open_gntdev", "probe", "share_dmabuf"]

MAP_GRANT_REF: Final = 0x00184700
UNMAP_GRANT_REF: Final = 0x00104701
DMABUF_EXP_FROM_REFS: Final = 0x00144709
DMABUF_EXP_WAIT_RELEASED: Final = 0x0008470A
DMABUF_IMP_TO_REFS: Final = 0x0014470B
DMABUF_IMP_RELEASE: Final = 0x0008470C

_MAP: Final = Struct("=IIQ")
_UNMAP: Final = Struct("=QII")
_EXPORT: Final = Struct("=IIII")
_IMPORT: Final = Struct("=IIII")
_PAIR: Final = Struct("=II")

_RELEASE_WAIT_MS: Final = 20
"""Timeout of one WAIT_RELEASED, which occupies a thread. A display driver releases a dma-buf at its next refresh."""
_RELEASE_PAUSE: Final = 0.5
"""Longest pause between two WAIT_RELEASED, in seconds."""
_MAP_TRIES: Final = 20
"""Attempts to map pages that the guest has paged out, 1 ms apart."""

_log = structlog.get_logger("displbe.gntdev")
T = TypeVar("T")


def open_gntdev(path: str = GNTDEV) -> int:
    """Open gntdev and return the fd. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _close(fd: int) -> None:
    """Close a file and ignore errors: Linux closes it in any case."""
    with contextlib.suppress(OSError):
        os.close(fd)


def _refused(what: str, error: OSError) -> HypervisorError:
    return HypervisorError(error.errno or errno.EIO, f"{what}: {shortage(error)}")


def _reserve(fd: int, domid: int, refs: Sequence[int]) -> int:
    """MAP_GRANT_REF: return the file offset where these pages can be mapped. Raises OSError."""
    pairs = array("I", [domid]) * (2 * len(refs))
    pairs[1::2] = array("I", refs)  # not a loop, which would hold the GIL
    ask = bytearray(_MAP.pack(len(refs), 0, 0)) + pairs.tobytes()
    fcntl.ioctl(fd, MAP_GRANT_REF, ask)
    return int(_MAP.unpack_from(ask)[2])


class _Grants:
    """Granted pages mapped into our address space, all or none. Raises OSError."""

    def __init__(self, fd: int, domid: int, refs: Sequence[int], *, writable: bool) -> None:
        self._fd = fd
        self._count = len(refs)
        self._index = _reserve(fd, domid, refs)
        try:
            self.mapping = self._map(writable)
        except OSError:
            self._unreserve()
            raise

    def _map(self, writable: bool) -> Mapping:
        for _ in range(_MAP_TRIES):
            try:
                return Mapping(self._fd, [(self._index, self._count * PAGE_SIZE)], writable=writable)
            except BlockingIOError:  # EAGAIN: a page of the guest is paged out, and will be paged in
                time.sleep(0.001)
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _unreserve(self) -> None:
        # Nothing is mapped any more. If this fails, closing the file releases the reservation.
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, UNMAP_GRANT_REF, bytearray(_UNMAP.pack(self._index, self._count, 0)))

    def close(self, wait: float = 0.0) -> bool:
        """Unmap, and wait up to `wait` seconds for borrowers. Return whether the pages are unmapped (`Mapping.close`)."""
        if not self.mapping.close(wait):
            return False
        self._unreserve()
        return True


class GuestPage(SharedMemory):
    """One mapped page of a guest: a ring, an event page, a directory page. It is the only borrower of its mapping."""

    def __init__(self, grants: _Grants, ledger: Ledger) -> None:
        self._borrowed = grants.mapping.borrow()
        super().__init__(self._borrowed.__enter__())
        self._grants: _Grants | None = grants
        self._ledger = ledger
        ledger.pages += 1

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        if self._grants is not None:
            self.forget()
            self._borrowed.__exit__()
            self._grants.close()
            self._grants = None
            self._ledger.pages -= 1


def map_page(fd: int, domid: int, ref: int, ledger: Ledger, *, writable: bool) -> GuestPage:
    """Map one page on an open gntdev file. Raises HypervisorError."""
    try:
        return GuestPage(_Grants(fd, domid, [ref], writable=writable), ledger)
    except OSError as error:
        raise _refused(f"cannot map grant {ref} of domain {domid}", error) from error


class GrantedPages:
    """A guest's buffer (port.GuestBuffer), made by `open`."""

    def __init__(
        self,
        domid: int,
        refs: Sequence[int],
        ledger: Ledger,
        threads: trio.CapacityLimiter | None = None,
        no_export: str = "",
    ) -> None:
        self.domid = domid
        self.size = len(refs) * PAGE_SIZE
        self._refs = refs
        self._threads = threads
        self._no_export = no_export
        self._ledger = ledger
        self._lock = trio.Lock()
        self._grants: _Grants | None = None
        self._dmabuf: int | None = None
        self._shareable = False
        self._fd = open_gntdev()
        ledger.buffers += 1
        ledger.buffer_pages += len(refs)

    @classmethod
    async def open(
        cls,
        domid: int,
        refs: Sequence[int],
        ledger: Ledger,
        *,
        dmabuf: bool,
        shared: bool = False,
        threads: trio.CapacityLimiter | None = None,
        no_export: str = "",
    ) -> GrantedPages:
        """Open a buffer and export it (`dmabuf`), test that it can be shared (`shared`), or map it.

        `no_export` says why this host cannot export dma-bufs; empty: it can. Raises HypervisorError; nothing is held then.
        """
        try:
            self = cls(domid, refs, ledger, threads, no_export)
        except OSError as error:
            raise _refused("cannot open gntdev", error) from error
        try:
            if shared:
                await self._off_loop("share", self._try_share)
            else:
                await (self.dmabuf() if dmabuf else self.map())
        except BaseException:
            await self._end()
            raise
        return self

    async def map(self) -> Memory:
        """Return the pages, read-only. Raises HypervisorError."""
        async with self._lock:
            self._check_open()
            if self._grants is None:
                self._grants = await self._off_loop("map", self._map)
            return self._grants.mapping

    async def dmabuf(self) -> int:
        """Return a dma-buf of the pages; the fd belongs to this object. Raises HypervisorError."""
        async with self._lock:
            self._check_open()
            if self._no_export:
                raise HypervisorError(errno.EOPNOTSUPP, self._no_export)
            if self._dmabuf is None:
                self._dmabuf = await self._off_loop("export", self._export)
            return self._dmabuf

    def _check_open(self) -> None:
        """Raise HypervisorError if the buffer has been closed: its pages are the guest's own again."""
        if self._fd < 0:
            raise HypervisorError(errno.ENOENT, "the guest has taken the buffer back")

    async def _off_loop(self, verb: str, work: Callable[[], T]) -> T:
        try:
            return await run_in_thread(work, limiter=self._threads)
        except OSError as error:
            raise _refused(f"cannot {verb} {len(self._refs)} pages of domain {self.domid}", error) from error

    def _map(self) -> _Grants:
        return _Grants(self._fd, self.domid, self._refs, writable=False)

    def _export(self) -> int:
        ask = bytearray(_EXPORT.pack(0, len(self._refs), 0, self.domid)) + array("I", self._refs).tobytes()
        fcntl.ioctl(self._fd, DMABUF_EXP_FROM_REFS, ask)
        return int(_EXPORT.unpack_from(ask)[2])

    async def shm_fd(self) -> tuple[int, int]:
        """Return a new gntdev file with these pages only, at offset 0. Raises HypervisorError."""
        self._check_open()
        return await self._off_loop("share", self._share), 0

    def _try_share(self) -> None:
        # The other process (a compositor) maps the file writable, and may end when that fails. So it is tried here first, on a separate
        # file, because a gntdev file can be mapped only once (drivers/xen/gntdev.c, gntdev_mmap).
        fd = open_gntdev()
        try:
            _Grants(fd, self.domid, self._refs, writable=True).close()
        finally:
            _close(fd)
        self._shareable = True

    def _share(self) -> int:
        if not self._shareable:
            self._try_share()
        fd = open_gntdev()
        try:
            if _reserve(fd, self.domid, self._refs):
                raise OSError(errno.EIO, "the pages are not at offset 0 of the file")
        except BaseException:
            _close(fd)
            raise
        return fd

    async def aclose(self) -> None:
        """Unmap the pages, close the dma-buf, and wait until no thread, process or driver uses them. A cancellation ends the wait.

        All of this is done in the guest's threads: the last close of a file or of a dma-buf unmaps each of its grants.
        """
        with trio.CancelScope(shield=True) as closing:
            async with self._lock:
                if self._fd < 0:
                    return
                try:
                    number, self._dmabuf = self._dmabuf, None
                    if number is not None:
                        await run_in_thread_or_here(_close, number, limiter=self._threads)
                    closing.shield = False
                    if self._grants is not None:
                        await close_in_thread(self._grants.close, self._threads)
                    if number is not None:
                        await self._until_released(number)
                finally:
                    self._grants = None
                    await self._end()

    async def _until_released(self, number: int) -> None:
        """Wait until the dma-buf of this closed fd is released."""
        pause = 0.01
        while True:
            with contextlib.suppress(NoThread):  # asked again after the pause
                if await run_in_thread(self._released, number, limiter=self._threads):
                    return
            await trio.sleep(pause)
            pause = min(2 * pause, _RELEASE_PAUSE)

    def _released(self, number: int) -> bool:
        """Return whether the dma-buf of this closed fd is released. Wait for that for up to _RELEASE_WAIT_MS."""
        try:
            fcntl.ioctl(self._fd, DMABUF_EXP_WAIT_RELEASED, bytearray(_PAIR.pack(number, _RELEASE_WAIT_MS)))
        except OSError as error:
            if error.errno in (errno.ETIMEDOUT, errno.EINTR):
                return False
            if error.errno != errno.ENOENT:  # ENOENT: it was released before
                _log.error(
                    "cannot tell whether the buffer is still in use; it counts as released", reason=error.strerror
                )
        return True

    async def _end(self) -> None:
        """Close the file, also when cancelled."""
        fd, self._fd = self._fd, -1
        with trio.CancelScope(shield=True):
            await run_in_thread_or_here(_close, fd, limiter=self._threads)
        self._ledger.buffers -= 1
        self._ledger.buffer_pages -= len(self._refs)


@contextlib.asynccontextmanager
async def share_dmabuf(
    domid: int, fd: int, pages: int, threads: trio.CapacityLimiter | None = None
) -> AsyncIterator[list[int]]:
    """Grant a dma-buf's pages to a guest while the block lasts, and yield the references. Raises HypervisorError."""
    try:
        gntdev = open_gntdev()
    except OSError as error:
        raise _refused("cannot open gntdev", error) from error
    ask = bytearray(_IMPORT.pack(fd, pages, domid, 0)) + bytearray(4 * pages)
    try:
        await run_in_thread(fcntl.ioctl, gntdev, DMABUF_IMP_TO_REFS, ask, limiter=threads)
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await run_in_thread_or_here(_close, gntdev, limiter=threads)
        if not isinstance(error, OSError):  # cancelled
            raise
        raise _refused(f"cannot grant a dma-buf of {pages} pages to domain {domid}", error) from error
    try:
        yield array("I", bytes(ask[_IMPORT.size :])).tolist()
    finally:
        with trio.CancelScope(shield=True):
            await run_in_thread_or_here(_unshare, gntdev, fd, limiter=threads)


def _unshare(gntdev: int, fd: int) -> None:
    """End the grants of a dma-buf, and close the gntdev file. Each of its pages is one operation of the hypervisor."""
    with contextlib.suppress(OSError):  # closing the file ends the grants in any case
        fcntl.ioctl(gntdev, DMABUF_IMP_RELEASE, bytearray(_PAIR.pack(fd, 0)))
    _close(gntdev)


def probe(fd: int) -> bool:
    """Return whether this kernel's gntdev supports dma-bufs. If not, the ioctl that releases a dma-buf fails with ENOTTY."""
    try:
        fcntl.ioctl(fd, DMABUF_IMP_RELEASE, bytearray(_PAIR.pack(0xFFFFFFFF, 0)))
    except OSError as error:
        return error.errno != errno.ENOTTY
    return True
