"""What a hypervisor is to the daemon. `xen.host` is the real one, `sim.hypervisor` the simulated one.

The conformance suite (tests/conformance) says in executable form what the docstrings here say in words; both pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
import trio

from displbe.wire.errors import Errno, from_host
from displbe.wire.ring import SharedPage

__all__ = [
    "Abilities",
    "EventChannel",
    "GuestBuffer",
    "Hypervisor",
    "HypervisorError",
    "Ledger",
    "NoEntry",
    "NotOffered",
    "Page",
    "Store",
    "StoreError",
    "StoreLost",
    "Transaction",
    "Unavailable",
]


class Unavailable(Exception):
    """This machine lacks what displbe needs to run at all; the text is one sentence for the operator."""


class HypervisorError(Exception):
    """Xen, or the kernel on its behalf, refused: `number` is the host's errno."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number

    @property
    def code(self) -> Errno:
        """What a guest gets whose request needed it."""
        return from_host(self.number)


class NotOffered(HypervisorError):
    """This host cannot do it at all (a kernel without the option, a PV domain)."""

    @property
    def code(self) -> Errno:
        return Errno.EOPNOTSUPP


class StoreError(Exception):
    """XenStore refused; the text is its own name for the error (EACCES, EINVAL, …)."""


class NoEntry(StoreError):
    """ENOENT: there is no such node."""


class WatchRefused(StoreError, Unavailable):
    """XenStore sets no more watches for our domain; the text is a sentence."""


class StoreLost(Exception):
    """The connection to xenstored is lost; every request under way fails with it, later ones wait for the next one."""


class Transaction(Protocol):
    """Reads and writes that happen together or not at all."""

    async def read(self, path: str) -> bytes: ...
    async def write(self, path: str, value: bytes) -> None: ...
    async def remove(self, path: str) -> None: ...


class Store(Protocol):
    """XenStore. Paths are absolute, or relative to our own domain's home (/local/domain/<our id>).

    Every call may raise StoreError and StoreLost.
    """

    async def read(self, path: str) -> bytes:
        """A node's value. Raises NoEntry."""

    async def children(self, path: str) -> list[str]:
        """The names below a node, however many. Raises NoEntry."""

    async def write(self, path: str, value: bytes) -> None:
        """Write a node; it and its parents are made when missing."""

    async def remove(self, path: str) -> None:
        """Remove a node with all below it; its absence is no error."""

    async def permissions(self, path: str) -> list[tuple[str, int]]:
        """(n, r, w or b; domid) per entry; the first is the owner, with what all others may. Raises NoEntry."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit at the end of the block, give up when an exception leaves it.

        Raises StoreError EAGAIN at the end when someone else changed what was read: do it all again.
        """

    def watch(self, path: str, changed: Callable[[str], None]) -> AbstractAsyncContextManager[None]:
        """Call `changed` with the path of each node at or below `path` that may have changed, and once at the start.

        Calls may be spurious and may be merged: look at the store, do not count. After a lost connection the watch is
        set again by itself, and called again. Raises WatchRefused.
        """


class EventChannel(Protocol):
    """One bound port. Its callback is called from the reading task when the other end has notified; no more calls come until `rearm`."""

    port: int

    def notify(self) -> None:
        """Notify the other end. Whether anyone is there to hear it is not said."""

    def rearm(self) -> None:
        """Allow the next call: after the work, so that a storm of notifications costs one call at a time."""

    def close(self) -> None:
        """Unbind; no call comes any more."""


class Page(SharedPage, Protocol):
    """One page of another domain, mapped."""

    def close(self) -> None:
        """Unmap."""


class GuestBuffer(Protocol):
    """A guest's pages, mapped as a whole or not at all."""

    domid: int
    size: int
    """Octets: whole pages."""

    async def view(self) -> memoryview:
        """The pages as memory, read-only, mapped at the first call. Raises HypervisorError."""

    async def dmabuf(self) -> int:
        """A dma-buf of the pages, exported at the first call; the fd stays the buffer's. Raises HypervisorError."""

    async def shm_fd(self) -> tuple[int, int]:
        """A new file that another process can map the pages from, writable and once, and the octet where they begin in it.

        The file is the caller's to close. What maps it must be gone before `aclose`, which cannot see it.
        Raises HypervisorError, also where the guest has granted its pages for reading only.
        """

    async def aclose(self) -> None:
        """Let go of the pages; returns when nothing maps them any more. Views must be released before.

        While somebody else (a display driver) holds the dma-buf, this waits for them; cancelled, not any longer: the kernel lets
        go of the pages when they do.
        """


class Abilities(msgspec.Struct, frozen=True):
    """What the host offers, probed once."""

    dmabuf_export: bool
    """EXP_FROM_REFS: a guest's pages as a dma-buf (front-allocated zero copy)."""
    dmabuf_import: bool
    """IMP_TO_REFS: a dma-buf granted to a guest (back-allocated zero copy)."""
    reason: str = ""
    """Why something is missing, in words."""


class Ledger(msgspec.Struct):
    """What is held of other domains right now; all zero when nobody is connected."""

    ports: int = 0
    pages: int = 0
    """Ring and directory pages."""
    buffers: int = 0
    buffer_pages: int = 0


class Hypervisor(Protocol):
    """Xen, from our domain."""

    @property
    def store(self) -> Store: ...

    @property
    def abilities(self) -> Abilities: ...

    @property
    def ledger(self) -> Ledger: ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve event channels and XenStore; `started` when both are there. Ends only by cancellation or error."""

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> EventChannel:
        """Bind a guest's unbound port. Raises HypervisorError.

        `fired` is called soon in any case (Xen sends a first event), and then when the guest notifies. It must neither block
        nor raise, and returns True when it has more to do than one turn allows: then it is called again in the next turn.
        """

    def map_page(self, domid: int, ref: int, *, writable: bool) -> Page:
        """Map one page. Raises HypervisorError. One hypercall: short enough for the loop."""

    async def map_buffer(
        self,
        domid: int,
        refs: Sequence[int],
        *,
        dmabuf: bool,
        shared: bool = False,
        threads: trio.CapacityLimiter | None = None,
    ) -> GuestBuffer:
        """Map many pages, or export them (`dmabuf`), or make sure that another process can map them (`shared`), off the loop.

        `threads`: what all that is done with the buffer takes its threads from; None: where everybody does.
        Raises HypervisorError; nothing stays then. The other ways stay open: a buffer that was exported can be mapped later.
        """

    def share_dmabuf(self, domid: int, fd: int, pages: int) -> AbstractAsyncContextManager[list[int]]:
        """Grant a dma-buf's pages to a guest, writable, while the block lasts: the references. Raises HypervisorError."""
