"""Reads a guest's page directories, and fills them for be-alloc."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from displbe.wire.errors import RequestError
from displbe.wire.pgdir import DirectoryReader, DirectoryWriter
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.port import Hypervisor, HypervisorError, Page

__all__ = ["fill_directory", "read_directory"]


def _map(hypervisor: Hypervisor, domid: int, ref: int, *, writable: bool) -> Page:
    try:
        return hypervisor.map_page(domid, ref, writable=writable)
    except HypervisorError as error:
        raise RequestError(error.code, f"page directory: {error}") from error


async def read_directory(hypervisor: Hypervisor, domid: int, first: int, count: int) -> list[int]:
    """Return the first `count` grant references of a directory. Each of its pages is copied once. Raises RequestError."""
    reader = DirectoryReader(first, count)
    while reader.next_ref is not None:
        await trio.lowlevel.checkpoint()
        page = _map(hypervisor, domid, reader.next_ref, writable=False)
        try:
            content = page.copy(0, PAGE_SIZE)
        finally:
            page.close()
        reader.feed(content)
    return reader.refs


async def fill_directory(hypervisor: Hypervisor, domid: int, first: int, refs: Sequence[int]) -> None:
    """Write grant references into the directory pages of a guest. The guest has linked the pages. Raises RequestError."""
    writer = DirectoryWriter(first, refs)
    while writer.next_ref is not None:
        await trio.lowlevel.checkpoint()
        page = _map(hypervisor, domid, writer.next_ref, writable=True)
        try:
            offset, entries = writer.feed(page.copy(0, PAGE_SIZE))
            page.write(offset, entries)
        finally:
            page.close()
