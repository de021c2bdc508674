"""GET_EDID: write the monitor's EDID, or one made for the connector's resolution, into the guest's pages."""

from __future__ import annotations

from typing import Final

from displbe.sinks.base import Output
from displbe.wire.displif import GetEdid
from displbe.wire.edid import make_edid, sanitise
from displbe.wire.errors import Errno, RequestError
from displbe.wire.pgdir import pages_of
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.port import Hypervisor, HypervisorError

from .directory import read_directory

__all__ = ["answer_edid"]

BLOCK: Final = 128
"""Bytes of an EDID block."""
MAX_SIZE: Final = 256 * BLOCK
"""XENDISPL_EDID_MAX_SIZE, in bytes. Further pages that a guest grants are not mapped."""


async def answer_edid(
    hypervisor: Hypervisor, domid: int, output: Output, name: str, width: int, height: int, request: GetEdid
) -> int:
    """Write the EDID into the pages of the request's directory. Return its size in bytes. Raises RequestError."""
    room = min(request.buffer_sz, MAX_SIZE) // BLOCK * BLOCK
    if room == 0:
        raise RequestError(Errno.EINVAL, f"no EDID fits into {request.buffer_sz} bytes")
    own = await output.edid()
    edid = sanitise(own or b"", room) or sanitise(
        make_edid(width, height, name), room
    )  # a monitor may send an invalid one
    for index, ref in enumerate(await read_directory(hypervisor, domid, request.gref_directory, pages_of(len(edid)))):
        try:
            page = hypervisor.map_page(domid, ref, writable=True)
        except HypervisorError as error:
            raise RequestError(error.code, str(error)) from error
        try:
            page.write(0, edid[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
        finally:
            page.close()
    return len(edid)
