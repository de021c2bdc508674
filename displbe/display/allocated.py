"""be-alloc: a display buffer in our memory, granted to the guest (displif.h, XENDISPL_DBUF_FLG_REQ_ALLOC).

The output allocates the memory. Its pages are granted writable, and their references are written into the guest's page directory; for a
buffer in the guest's own memory, the guest writes them there.

Xen calls this mode experimental and does not support it against hostile guests (XSA-363). The reason: while a guest maps a page, its
grant cannot be revoked. The kernel puts the page on a list to try again (gnttab_end_foreign_access in drivers/xen/gntdev-dmabuf.c) and
reports nothing to displbe. Since Linux 5.17 (XSA-396, also in the stable kernels of March 2022) it keeps the page until the grant is
revoked (gnttab_add_deferred: get_page): the page is lost to this domain, but is not reused. Earlier kernels freed the memory, and the
guest saw its next contents. So be-alloc is off unless the configuration allows it for that guest.

The pages are charged to the guest until it has destroyed the buffer or its device has ended. displbe cannot know which pages the guest
keeps mapped after that; the guest can connect again and keep more.
"""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack

import trio

from displbe.sinks.base import Allocation, Output, SinkError
from displbe.wire.errors import RequestError
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.memory import Memory, close_in_thread
from displbe.xen.port import Hypervisor, HypervisorError, NotOffered

from .directory import fill_directory

__all__ = ["AllocatedBuffer"]


class AllocatedBuffer:
    """Memory of an output that the guest draws into (xen.port.GuestBuffer)."""

    def __init__(self, domid: int, pages: int, allocation: Allocation, stack: AsyncExitStack) -> None:
        self.domid = domid
        self.size = pages * PAGE_SIZE
        self._allocation = allocation
        self._stack = stack

    @classmethod
    async def create(
        cls,
        hypervisor: Hypervisor,
        domid: int,
        output: Output,
        directory: int,
        pages: int,
        threads: trio.CapacityLimiter,
    ) -> AllocatedBuffer:
        """Allocate `pages` pages, grant them, and fill the directory. Raises RequestError; nothing is held then.

        `threads` are the guest's threads, in which the grants are made and ended and the memory is freed.
        """
        async with AsyncExitStack() as stack:
            try:
                allocation = await output.allocate(pages)
                stack.push_async_callback(close_in_thread, allocation.close, threads)
                refs = await stack.enter_async_context(hypervisor.share_dmabuf(domid, allocation.fd, pages, threads))
            except SinkError as error:
                raise RequestError(error.code, str(error)) from error
            except HypervisorError as error:
                raise RequestError(error.code, str(error)) from error
            await fill_directory(hypervisor, domid, directory, refs)
            return cls(domid, pages, allocation, stack.pop_all())
        raise AssertionError("not reached")

    async def map(self) -> Memory:
        """Return the memory, read-only."""
        await trio.lowlevel.checkpoint()
        return self._allocation.memory

    async def dmabuf(self) -> int:
        """Return the memory's dma-buf. The fd belongs to the allocation."""
        await trio.lowlevel.checkpoint()
        return self._allocation.fd

    async def shm_fd(self) -> tuple[int, int]:
        """Raise NotOffered: the memory is not mapped through gntdev."""
        await trio.lowlevel.checkpoint()
        raise NotOffered(errno.EOPNOTSUPP, "an output's memory is shared as a dma-buf only")

    async def aclose(self) -> None:
        """Revoke the grants and free the memory."""
        with trio.CancelScope(shield=True):
            await self._stack.aclose()
