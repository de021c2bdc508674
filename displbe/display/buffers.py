"""Display buffers and framebuffers of one device: DBUF_CREATE, DBUF_DESTROY, FB_ATTACH, FB_DETACH.

A display buffer is a guest's pages, a framebuffer a way to look at them. The guest names both by cookies of its own, which it
uses again once they are free. Everything is checked, in numbers that do not wrap, before anything is mapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import trio

from displbe.backend.quota import Quota
from displbe.sinks.base import Geometry, Output, SinkBuffer, SinkError
from displbe.wire.displif import REQ_ALLOC, DbufCreate, DbufDestroy, FbAttach, FbDetach
from displbe.wire.errors import Errno, RequestError
from displbe.wire.formats import FORMATS, fourcc_name, stride
from displbe.wire.pgdir import DirectoryReader, pages_of
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.port import GuestBuffer, Hypervisor, HypervisorError

__all__ = ["Buffers", "Dbuf", "Framebuffer"]

MAX_SIDE: Final = 16384
"""Pixels: more than any display has, and small enough that no product of ours is large."""
BITS: Final = (8, 16, 24, 32)


class Dbuf:
    """A display buffer. Width, height and bpp are 0 for a guest's imported buffer, whose shape its framebuffers tell."""

    def __init__(self, request: DbufCreate, buffer: GuestBuffer) -> None:
        self.buffer = buffer
        self.width = request.width
        self.height = request.height
        self.bpp = request.bpp
        self.offset = request.data_ofs
        # Pages may hold more than the guest says; what it did not count is not looked at.
        self.octets = min(request.buffer_sz, buffer.size)


class Framebuffer:
    """A framebuffer, as the device's outputs show it (None: that output cannot)."""

    def __init__(self, cookie: int, dbuf: Dbuf, geometry: Geometry) -> None:
        self.cookie = cookie
        self.dbuf = dbuf
        self.geometry = geometry
        self.on: list[SinkBuffer | None] = []

    async def aclose(self) -> None:
        """Off every screen, and no use of the guest's pages afterwards."""
        for sink_buffer in self.on:
            if sink_buffer is not None:
                await sink_buffer.aclose()


class Buffers:
    """What a guest has created over one device. Serialised: one request at a time."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        domid: int,
        quota: Quota,
        outputs: Sequence[Output],
        *,
        be_alloc: bool,
        dmabuf: bool,
        log: Any,
    ) -> None:
        self.framebuffers: dict[int, Framebuffer] = {}
        self._dbufs: dict[int, Dbuf] = {}
        self._hypervisor = hypervisor
        self._domid = domid
        self._quota = quota
        self._outputs = outputs
        self._be_alloc = be_alloc
        self._dmabuf = dmabuf and hypervisor.abilities.dmabuf_export
        self._lock = trio.Lock()
        self._log = log

    async def create(self, request: DbufCreate) -> None:
        """DBUF_CREATE. Raises RequestError; nothing is held then."""
        async with self._lock:
            pages = self._check_create(request)
            self._quota.take("buffers")
            try:
                self._quota.take("pages", pages)
                try:
                    buffer = await self._map(await self._references(request.gref_directory, pages))
                except BaseException:
                    self._quota.give("pages", pages)
                    raise
            except BaseException:
                self._quota.give("buffers")
                raise
            self._dbufs[request.dbuf_cookie] = Dbuf(request, buffer)

    def _check_create(self, request: DbufCreate) -> int:
        """How many pages the buffer has. Raises RequestError."""
        if request.dbuf_cookie == 0:
            raise RequestError(Errno.EINVAL, "display buffer cookie 0")
        if request.dbuf_cookie in self._dbufs:
            raise RequestError(Errno.EEXIST, "display buffer cookie in use")
        # Both must ask for it: Linux leaves an old request's octets in `flags` when be-alloc is 0.
        if self._be_alloc and request.flags & REQ_ALLOC:
            raise RequestError(Errno.EOPNOTSUPP, "buffers allocated by the backend are not allowed")
        if request.buffer_sz == 0:
            raise RequestError(Errno.EINVAL, "display buffer of size 0")
        if (request.width, request.height, request.bpp) == (0, 0, 0):
            need = request.data_ofs + 1
        elif not (1 <= request.width <= MAX_SIDE and 1 <= request.height <= MAX_SIDE) or request.bpp not in BITS:
            raise RequestError(Errno.EINVAL, f"display buffer of {request.width}x{request.height}, {request.bpp} bits")
        else:
            need = request.data_ofs + stride(request.width, request.bpp) * request.height
        if need > request.buffer_sz:
            raise RequestError(Errno.EINVAL, f"display buffer needs {need} octets, has {request.buffer_sz}")
        return pages_of(request.buffer_sz)

    async def _references(self, first: int, count: int) -> list[int]:
        """The grant references in a page directory. Raises RequestError."""
        reader = DirectoryReader(first, count)
        while reader.next_ref is not None:
            await trio.lowlevel.checkpoint()
            try:
                page = self._hypervisor.map_page(self._domid, reader.next_ref, writable=False)
            except HypervisorError as error:
                raise RequestError(Errno.EINVAL, f"page directory: {error}") from error
            try:
                content = page.copy(0, PAGE_SIZE)
            finally:
                page.close()
            reader.feed(content)
        return reader.refs

    async def _map(self, refs: Sequence[int]) -> GuestBuffer:
        """The pages, as a dma-buf where that is of use and can be had, else mapped. Raises RequestError."""
        if self._dmabuf:
            try:
                return await self._hypervisor.map_buffer(self._domid, refs, dmabuf=True)
            except HypervisorError as error:
                self._log.warning("no dma-buf of this buffer: its frames are copied", reason=str(error))
        try:
            return await self._hypervisor.map_buffer(self._domid, refs, dmabuf=False)
        except HypervisorError as error:
            raise RequestError(Errno.EINVAL, str(error)) from error

    async def destroy(self, request: DbufDestroy) -> None:
        """DBUF_DESTROY: returns when nothing maps the pages, since the guest takes them back then. Raises RequestError."""
        async with self._lock:
            dbuf = self._dbufs.get(request.dbuf_cookie)
            if dbuf is None:
                raise RequestError(Errno.ENOENT, "no such display buffer")
            for framebuffer in [fb for fb in self.framebuffers.values() if fb.dbuf is dbuf]:
                await self._detach(framebuffer)
            await self._release(request.dbuf_cookie)

    async def attach(self, request: FbAttach) -> None:
        """FB_ATTACH. Raises RequestError; nothing is held then."""
        async with self._lock:
            dbuf, geometry = self._check_attach(request)
            self._quota.take("framebuffers")
            framebuffer = Framebuffer(request.fb_cookie, dbuf, geometry)
            try:
                await self._show_on_outputs(framebuffer)
            except BaseException:
                self._quota.give("framebuffers")
                raise
            self.framebuffers[request.fb_cookie] = framebuffer

    def _check_attach(self, request: FbAttach) -> tuple[Dbuf, Geometry]:
        if request.fb_cookie == 0:
            raise RequestError(Errno.EINVAL, "framebuffer cookie 0")
        if request.fb_cookie in self.framebuffers:
            raise RequestError(Errno.EEXIST, "framebuffer cookie in use")
        dbuf = self._dbufs.get(request.dbuf_cookie)
        if dbuf is None:
            raise RequestError(Errno.ENOENT, "no such display buffer")
        pixels = FORMATS.get(request.pixel_format)
        if pixels is None:
            raise RequestError(Errno.EINVAL, f"pixel format {fourcc_name(request.pixel_format)}")
        width, height, bits = dbuf.width or request.width, dbuf.height or request.height, dbuf.bpp or pixels.bits
        if not (1 <= request.width <= min(width, MAX_SIDE) and 1 <= request.height <= min(height, MAX_SIDE)):
            raise RequestError(Errno.EINVAL, f"framebuffer of {request.width}x{request.height} in {width}x{height}")
        if pixels.bits != bits:
            raise RequestError(Errno.EINVAL, f"pixel format {pixels.name} in a buffer of {bits} bits")
        pitch = stride(width, bits)
        need = dbuf.offset + pitch * (request.height - 1) + stride(request.width, bits)
        if need > dbuf.octets:
            raise RequestError(Errno.EINVAL, f"framebuffer needs {need} octets, its buffer has {dbuf.octets}")
        return dbuf, Geometry(request.width, request.height, request.pixel_format, pitch, dbuf.offset)

    async def _show_on_outputs(self, framebuffer: Framebuffer) -> None:
        """Prepare the framebuffer for each output of the device. Raises RequestError when none can show it."""
        refusal: SinkError | None = None
        try:
            for output in self._outputs:
                try:
                    framebuffer.on.append(await output.attach(framebuffer.dbuf.buffer, framebuffer.geometry))
                except SinkError as error:
                    refusal = error
                    framebuffer.on.append(None)
            if refusal is not None and not any(framebuffer.on):
                raise RequestError(refusal.code, str(refusal)) from refusal
        except BaseException:
            with trio.CancelScope(shield=True):
                await framebuffer.aclose()
            raise

    async def detach(self, request: FbDetach) -> None:
        """FB_DETACH. Raises RequestError."""
        async with self._lock:
            framebuffer = self.framebuffers.get(request.fb_cookie)
            if framebuffer is None:
                raise RequestError(Errno.ENOENT, "no such framebuffer")
            await self._detach(framebuffer)

    async def _detach(self, framebuffer: Framebuffer) -> None:
        # Out of the table first: no flip can choose it while it goes.
        del self.framebuffers[framebuffer.cookie]
        try:
            with trio.CancelScope(shield=True):
                await framebuffer.aclose()
        finally:
            self._quota.give("framebuffers")

    async def _release(self, cookie: int) -> None:
        dbuf = self._dbufs.pop(cookie)
        pages = dbuf.buffer.size // PAGE_SIZE
        with trio.CancelScope(shield=True):
            await dbuf.buffer.aclose()
        self._quota.give("pages", pages)
        self._quota.give("buffers")

    async def aclose(self) -> None:
        """The device closes: everything off the screens, all pages given back."""
        for framebuffer in list(self.framebuffers.values()):
            await self._detach(framebuffer)
        for cookie in list(self._dbufs):
            await self._release(cookie)
