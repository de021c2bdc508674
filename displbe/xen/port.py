"""The interfaces of a hypervisor. `xen.host` implements them over the real Xen, `sim.hypervisor` in one process.

Both pass the conformance suite (tests/conformance), which tests what the docstrings here say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import msgspec
import trio

from displbe.pump.native import Pump, SystemCalls
from displbe.wire.errors import Errno, from_host
from displbe.wire.ring import SharedPage

from .memory import Memory

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
    """This machine lacks something that displbe cannot run without; the text is one sentence for the operator."""


class HypervisorError(Exception):
    """Xen or the kernel refused; `number` is the host's errno."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number

    @property
    def code(self) -> Errno:
        """The error number that a guest gets for a request that fails for this reason."""
        return from_host(self.number)


class NotOffered(HypervisorError):
    """This host does not support the operation (a kernel without the option, a PV domain)."""

    @property
    def code(self) -> Errno:
        return Errno.EOPNOTSUPP


class StoreError(Exception):
    """XenStore refused; the text is the name of its error (EACCES, EINVAL, …)."""


class NoEntry(StoreError):
    """ENOENT: the node does not exist."""


class WatchRefused(StoreError, Unavailable):
    """XenStore refused to set a watch for our domain; the text is a sentence."""


class StoreLost(Exception):
    """The connection to XenStore is lost. Pending requests fail with this; later ones wait for the next connection."""


class Transaction(Protocol):
    """Reads and writes that take effect together or not at all. Calls raise as those of `Store`."""

    async def read(self, path: str) -> bytes: ...
    async def write(self, path: str, value: bytes) -> None: ...
    async def remove(self, path: str) -> None: ...


class Store(Protocol):
    """XenStore. Paths are absolute, or relative to our own domain's home (/local/domain/<our id>).

    Every call may raise StoreError and StoreLost.
    """

    async def read(self, path: str) -> bytes:
        """Return a node's value. Raises NoEntry."""

    async def children(self, path: str) -> list[str]:
        """Return the names of all children of a node, also when one message cannot hold them. Raises NoEntry."""

    async def write(self, path: str, value: bytes) -> None:
        """Write a node; it and its parents are created when missing."""

    async def remove(self, path: str) -> None:
        """Remove a node and all below it. A missing node is no error."""

    async def permissions(self, path: str) -> list[tuple[str, int]]:
        """Return (n, r, w or b; domid) for each entry. Raises NoEntry.

        The domid of the first entry owns the node; its letter is the right of all domains that are not listed.
        """

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Start a transaction. It is committed at the end of the block, or aborted when an exception leaves the block.

        Raises StoreError EAGAIN at the end when another client has changed a node that was read; the caller then starts over.
        """

    def watch(self, path: str, changed: Callable[[str], None]) -> AbstractAsyncContextManager[None]:
        """Call `changed` with the path of each node at or below `path` that may have changed, and once at the start.

        Calls may be spurious or merged, so the caller must read the store again. After a lost connection the watch is set again, and
        `changed` is called once. Raises WatchRefused.
        """


class EventChannel(Protocol):
    """One bound port. The reading task calls its callback when the other end notifies, and not again until `rearm`."""

    port: int
    fd: int
    """The file that it was bound by."""

    def notify(self) -> None:
        """Notify the other end. There is no error when it has closed its port."""

    def rearm(self) -> None:
        """Allow the next call. The caller does so after its work, so that many notifications cost one call."""

    def close(self) -> None:
        """Unbind the port. The callback is not called afterwards."""


class Page(SharedPage, Protocol):
    """One mapped page of another domain."""

    @property
    def address(self) -> Any:
        """Its address (`char *`)."""

    def close(self) -> None:
        """Unmap."""


class GuestBuffer(Protocol):
    """A guest's pages, mapped all or none."""

    domid: int
    size: int
    """In bytes; whole pages."""

    async def map(self) -> Memory:
        """Return the pages as read-only memory, to be borrowed; the first call maps them. Raises HypervisorError."""

    async def dmabuf(self) -> int:
        """Return a dma-buf of the pages; the first call exports it. The fd belongs to this object. Raises HypervisorError."""

    async def shm_fd(self) -> tuple[int, int]:
        """Return a new file from which another process can map the pages, writable and once, and their offset in it in bytes.

        The caller closes the file. Mappings of it must be gone before `aclose`, which does not know of them.
        Raises HypervisorError, also when the guest has granted its pages read-only.
        """

    async def aclose(self) -> None:
        """Release the pages, and return when nothing maps them any more. The memory of `map` cannot be borrowed from now on.

        This waits while a thread borrows the memory, and while a display driver or another process holds the dma-buf. A cancellation ends
        the wait; the pages are then released once the memory is no longer borrowed and the dma-buf no longer held.
        """


class Abilities(msgspec.Struct, frozen=True):
    """The dma-buf support of the host, probed once."""

    dmabuf_export: bool
    """EXP_FROM_REFS: export a guest's pages as a dma-buf (zero copy with buffers of the frontend)."""
    dmabuf_import: bool
    """IMP_TO_REFS: grant a dma-buf to a guest (zero copy with buffers of the backend, be-alloc)."""
    reason: str = ""
    """Why one of them is missing, as a sentence."""


class Ledger(msgspec.Struct):
    """Counts of the ports and pages of other domains that this domain holds; all zero when no guest is connected."""

    ports: int = 0
    pages: int = 0
    """Mapped ring and directory pages."""
    buffers: int = 0
    buffer_pages: int = 0


class Hypervisor(Protocol):
    """Xen, seen from our domain."""

    @property
    def store(self) -> Store: ...

    @property
    def abilities(self) -> Abilities: ...

    @property
    def ledger(self) -> Ledger: ...

    def system_calls(self) -> SystemCalls | None:
        """Return the system calls by which the pump reaches this hypervisor; None: the pump's own."""

    def use_pump(self, pump: Pump | None) -> None:
        """Let the pump read the event channels; None: they are read here. Called before `run`."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve event channels and XenStore; started once both are connected. Ends by cancellation or error only."""

    def bind(self, domid: int, remote_port: int, fired: Callable[[], bool]) -> EventChannel:
        """Bind a guest's unbound port. Raises HypervisorError.

        `fired` is called once soon after (Xen sends a first event), and then when the guest notifies. It must neither block nor raise.
        It returns True when it has work left; it is then called again in the next turn.
        """

    def map_page(self, domid: int, ref: int, *, writable: bool) -> Page:
        """Map one page. Raises HypervisorError. It is one hypercall, short enough for the event loop."""

    async def map_buffer(
        self,
        domid: int,
        refs: Sequence[int],
        *,
        dmabuf: bool,
        shared: bool = False,
        threads: trio.CapacityLimiter | None = None,
    ) -> GuestBuffer:
        """Map many pages, or export them (`dmabuf`), or test that another process can map them (`shared`), in a worker thread.

        `threads` limits the worker threads of all operations on the buffer; None: trio's default limit.
        Raises HypervisorError; nothing is held then. The other kinds of access stay possible: an exported buffer can be mapped later.
        """

    def share_dmabuf(
        self, domid: int, fd: int, pages: int, threads: trio.CapacityLimiter | None = None
    ) -> AbstractAsyncContextManager[list[int]]:
        """Grant a dma-buf's pages to a guest, writable, while the block lasts. The block gets their references. Raises HypervisorError.

        `threads` limits the worker threads; None: trio's default limit.
        """
