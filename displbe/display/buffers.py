"""Display buffers and framebuffers of one device: DBUF_CREATE, DBUF_DESTROY, FB_ATTACH, FB_DETACH.

A display buffer is a set of guest pages; a framebuffer describes the pixels in them. The guest names both by cookies of its own choice,
which it may use again once they are free. Everything is checked, in integers that do not wrap, before anything is mapped.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import Any, Final

import trio

from displbe.backend.quota import Quota
from displbe.shortage import shortage
from displbe.sinks.base import Geometry, Output, Part, SinkBuffer, SinkError
from displbe.sinks.frame_copy import FrameRows, copy_frame, frame_rows
from displbe.threads import run_in_thread
from displbe.wire.displif import REQ_ALLOC, DbufCreate, DbufDestroy, FbAttach, FbDetach
from displbe.wire.errors import Errno, RequestError, from_host
from displbe.wire.formats import FORMATS, fourcc_name, likely_stride, stride
from displbe.wire.pgdir import pages_of
from displbe.wire.ring import PAGE_SIZE
from displbe.xen.memory import Memory, PrivateMemory, Unmapped
from displbe.xen.port import GuestBuffer, Hypervisor, HypervisorError

from .allocated import AllocatedBuffer
from .directory import read_directory

__all__ = ["BeAlloc", "Buffers", "DisplayBuffer", "Framebuffer"]

MAX_SIDE: Final = 16384
"""Maximum width and height in pixels: more than any display has, and small enough to keep the sizes of buffers reasonable."""
BITS: Final = (8, 16, 24, 32)
"""Bits per pixel that a display buffer may have."""
OVERDUE: Final = 1.0
"""Seconds after which a destroyed buffer that is still in use is reported."""
CLOSE_WAIT: Final = 2.0
"""Seconds that the end of a device waits for buffers that are still in use; Linux waits 5 s for our state, the toolstack 10 s."""


class BeAlloc(enum.Enum):
    """Whether the backend allocates the buffers of a guest that asks for it (be-alloc)."""

    NOT_ASKED_FOR = "not asked for"
    """XenStore does not ask for it (`be-alloc` is missing or 0): the flag REQ_ALLOC of a request is ignored."""
    FORBIDDEN = "forbidden"
    """XenStore asks for it, but the configuration does not allow it: requests with REQ_ALLOC are refused."""
    ALLOWED = "allowed"
    """Requests with REQ_ALLOC are served."""


class DisplayBuffer:
    """A display buffer. Width, height and bpp are 0 for a buffer that the guest has imported; its framebuffers give the shape then."""

    def __init__(self, request: DbufCreate, buffer: GuestBuffer, kind: str) -> None:
        self.buffer = buffer
        self.kind = kind
        """The kind of quota that its pages are charged to."""
        self.width = request.width
        self.height = request.height
        self.bpp = request.bpp
        self.offset = request.data_ofs
        # The pages may hold more bytes than the guest declares; the rest is not used.
        self.size = min(request.buffer_sz, buffer.size)


class Framebuffer:
    """A framebuffer, and its counterpart (SinkBuffer) for each output of the device, by the connectors' numbers."""

    def __init__(self, cookie: int, dbuf: DisplayBuffer, geometry: Geometry) -> None:
        self.cookie = cookie
        self.dbuf = dbuf
        self.geometry = geometry
        self.sink_buffers: list[SinkBuffer | None] = []
        """None where the output cannot show the framebuffer."""

    async def aclose(self) -> None:
        """Remove the framebuffer from every screen. No output uses the guest's pages afterwards."""
        for sink_buffer in self.sink_buffers:
            if sink_buffer is not None:
                await sink_buffer.aclose()


class _Release:
    """A display buffer whose pages are being given back."""

    def __init__(self, dbuf: DisplayBuffer) -> None:
        self.dbuf = dbuf
        self.done = trio.Event()
        self.scope = trio.CancelScope(shield=True)
        """Once its shield is removed, it is cancelled when the daemon ends."""


class Buffers:
    """The buffers that a guest has created over one connection of a device. One request is served at a time.

    `background` is for buffers that are being released, which may outlive the device.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        domid: int,
        quota: Quota,
        outputs: Sequence[Output],
        *,
        be_alloc: BeAlloc,
        dmabuf: bool,
        shared: bool,
        background: trio.Nursery,
        log: Any,
    ) -> None:
        self.overdue = 0
        """The number of destroyed buffers that are still in use after `OVERDUE` seconds."""
        self.framebuffers: dict[int, Framebuffer] = {}
        self._dbufs: dict[int, DisplayBuffer] = {}
        self._hypervisor = hypervisor
        self._domid = domid
        self._quota = quota
        self._outputs = outputs
        self._be_alloc = be_alloc
        self._dmabuf = dmabuf and hypervisor.abilities.dmabuf_export
        self._shared = shared
        self._background = background
        self._releases: set[_Release] = set()
        self._lock = trio.Lock()
        self._log = log

    async def create(self, request: DbufCreate) -> None:
        """DBUF_CREATE. Raises RequestError; nothing is held then."""
        async with self._lock:
            pages = self._check_create(request)
            # XenStore and the request must both ask for it: when be-alloc is 0, Linux leaves bytes of an old request in `flags`.
            allocate = self._be_alloc is not BeAlloc.NOT_ASKED_FOR and bool(request.flags & REQ_ALLOC)
            if allocate and self._be_alloc is BeAlloc.FORBIDDEN:
                raise RequestError(Errno.EOPNOTSUPP, "the configuration does not allow be-alloc for this guest")
            if allocate and request.data_ofs:
                raise RequestError(Errno.EINVAL, "data offset in a buffer that the backend allocates")
            kind = "alloc_pages" if allocate else "pages"
            with self._charged(("buffers", 1), (kind, pages)):
                if allocate:
                    buffer: GuestBuffer = await AllocatedBuffer.create(
                        self._hypervisor,
                        self._domid,
                        self._outputs[0],
                        request.gref_directory,
                        pages,
                        self._quota.threads,
                    )
                else:
                    refs = await read_directory(self._hypervisor, self._domid, request.gref_directory, pages)
                    buffer = await self._map(refs)
            self._dbufs[request.dbuf_cookie] = DisplayBuffer(request, buffer, kind)

    @contextmanager
    def _charged(self, *charges: tuple[str, int]) -> Iterator[None]:
        """Charge the guest for what the block creates. Nothing is charged when the block fails. Raises RequestError ENOSPC."""
        with ExitStack() as undo:
            for kind, amount in charges:
                self._quota.take(kind, amount)
                undo.callback(self._quota.give, kind, amount)
            yield
            undo.pop_all()

    def _check_create(self, request: DbufCreate) -> int:
        """Check a DBUF_CREATE, and return the number of pages of the buffer. Raises RequestError."""
        if request.dbuf_cookie == 0:
            raise RequestError(Errno.EINVAL, "display buffer cookie 0")
        if request.dbuf_cookie in self._dbufs:
            raise RequestError(Errno.EEXIST, "display buffer cookie in use")
        if request.buffer_sz == 0:
            raise RequestError(Errno.EINVAL, "display buffer of size 0")
        if (request.width, request.height, request.bpp) == (0, 0, 0):
            need = request.data_ofs + 1
        elif not (1 <= request.width <= MAX_SIDE and 1 <= request.height <= MAX_SIDE) or request.bpp not in BITS:
            raise RequestError(Errno.EINVAL, f"display buffer of {request.width}x{request.height}, {request.bpp} bits")
        else:
            need = request.data_ofs + stride(request.width, request.bpp) * request.height
        if need > request.buffer_sz:
            raise RequestError(Errno.EINVAL, f"display buffer needs {need} bytes, has {request.buffer_sz}")
        return pages_of(request.buffer_sz)

    async def _map(self, refs: Sequence[int]) -> GuestBuffer:
        """Return the buffer, exported as a dma-buf if the sink wants that, or shareable with the compositor if the sink wants that.

        If it wants neither or that fails, the pages are mapped here, to be copied. Raises RequestError.
        """
        if self._dmabuf:
            try:
                return await self._map_as(refs, dmabuf=True)
            except HypervisorError as error:
                self._log.warning("no dma-buf of this buffer: its frames are copied", reason=str(error))
        if self._shared:
            try:
                return await self._map_as(refs, shared=True)
            except HypervisorError as error:
                self._log.debug("the compositor cannot map this buffer: its frames are copied", reason=str(error))
        try:
            return await self._map_as(refs)
        except HypervisorError as error:
            raise RequestError(error.code, str(error)) from error

    async def _map_as(self, refs: Sequence[int], *, dmabuf: bool = False, shared: bool = False) -> GuestBuffer:
        threads = self._quota.threads
        return await self._hypervisor.map_buffer(self._domid, refs, dmabuf=dmabuf, shared=shared, threads=threads)

    async def destroy(self, request: DbufDestroy) -> None:
        """DBUF_DESTROY. Return when nothing maps the pages any more; the guest reuses them after the response. Raises RequestError."""
        async with self._lock:
            dbuf = self._dbufs.get(request.dbuf_cookie)
            if dbuf is None:
                raise RequestError(Errno.ENOENT, "no such display buffer")
            for framebuffer in [fb for fb in self.framebuffers.values() if fb.dbuf is dbuf]:
                await self._detach(framebuffer)
            release = self._begin_release(request.dbuf_cookie)
        await self._until_released(request.dbuf_cookie, release)

    async def attach(self, request: FbAttach) -> None:
        """FB_ATTACH. Raises RequestError; nothing is held then."""
        async with self._lock:
            dbuf, geometry = self._check_attach(request)
            framebuffer = Framebuffer(request.fb_cookie, dbuf, geometry)
            with self._charged(("framebuffers", 1)):
                await self._attach_to_outputs(framebuffer)
            self.framebuffers[request.fb_cookie] = framebuffer

    def _check_attach(self, request: FbAttach) -> tuple[DisplayBuffer, Geometry]:
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
        pitch = likely_stride(width, height, bits, dbuf.size - dbuf.offset)
        need = dbuf.offset + pitch * (request.height - 1) + stride(request.width, bits)
        if need > dbuf.size:
            raise RequestError(Errno.EINVAL, f"framebuffer needs {need} bytes, its buffer has {dbuf.size}")
        return dbuf, Geometry(request.width, request.height, request.pixel_format, pitch, dbuf.offset)

    async def _attach_to_outputs(self, framebuffer: Framebuffer) -> None:
        """Prepare the framebuffer for each output of the device. Raises RequestError when none can show it."""
        refusal: SinkError | None = None
        try:
            for output in self._outputs:
                try:
                    framebuffer.sink_buffers.append(await output.attach(framebuffer.dbuf.buffer, framebuffer.geometry))
                except SinkError as error:
                    refusal = error
                    framebuffer.sink_buffers.append(None)
            if refusal is not None and not any(framebuffer.sink_buffers):
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

    async def picture(self, cookie: int, part: Part) -> tuple[Geometry, PrivateMemory]:
        """Return a copy of a part of a framebuffer, and the copy's geometry. The guest may take the framebuffer back meanwhile.

        The caller closes the copy. Raises RequestError, HypervisorError.
        """
        framebuffer = self.framebuffers.get(cookie)
        if framebuffer is None:
            raise RequestError(Errno.ENOENT, "no such framebuffer")
        shape = framebuffer.geometry
        rows = frame_rows(shape, part)
        memory = await framebuffer.dbuf.buffer.map()
        with trio.CancelScope(shield=True):
            try:
                picture = await run_in_thread(_copy, rows, memory)
            except Unmapped as error:
                raise RequestError(Errno.ENOENT, "the guest has just taken the framebuffer back") from error
            except OSError as error:
                raise RequestError(from_host(error.errno), shortage(error)) from error
        return Geometry(part.width, part.height, shape.fourcc, rows.row, 0), picture

    async def _detach(self, framebuffer: Framebuffer) -> None:
        # It is removed from the table first, so that no flip can use it any more.
        for output in self._outputs:
            output.interrupt()
        del self.framebuffers[framebuffer.cookie]
        try:
            with trio.CancelScope(shield=True):
                await framebuffer.aclose()
        finally:
            self._quota.give("framebuffers")

    def _begin_release(self, cookie: int) -> _Release:
        """Begin to release a buffer's pages, in the background: the release goes on when the device ends."""
        release = _Release(self._dbufs.pop(cookie))
        self._releases.add(release)
        self._background.start_soon(self._run_release, release)
        return release

    async def _run_release(self, release: _Release) -> None:
        buffer = release.dbuf.buffer
        pages = buffer.size // PAGE_SIZE
        try:
            with release.scope:
                await buffer.aclose()
        except Exception:
            self._log.exception("releasing a buffer failed; the guest is not charged for it any more")
        finally:
            self._quota.give(release.dbuf.kind, pages)
            self._quota.give("buffers")
            self._releases.discard(release)
            release.done.set()

    async def _until_released(self, cookie: int, release: _Release) -> None:
        """Wait for the end of a release. Report a destroyed buffer that a compositor or a card's driver still uses."""
        with trio.move_on_after(OVERDUE):
            await release.done.wait()
            return
        self._log.warning("a destroyed buffer is still used by the compositor or the card", buffer=f"{cookie:#x}")
        self.overdue += 1
        try:
            await release.done.wait()
        finally:
            self.overdue -= 1

    async def aclose(self) -> None:
        """Remove everything from the screens and release all pages, at the end of a connection.

        Buffers that are still in use after `CLOSE_WAIT` seconds are released later, in the background.
        """
        # In reverse order. After an error, the rest is still released.
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._release_all)
            for framebuffer in self.framebuffers.values():
                stack.push_async_callback(self._detach, framebuffer)

    async def _release_all(self) -> None:
        for cookie in list(self._dbufs):
            self._begin_release(cookie)
        with trio.move_on_after(CLOSE_WAIT):
            for release in list(self._releases):
                await release.done.wait()
        for release in self._releases:
            self._log.error("the compositor or the card still uses a buffer of a device that ends")
            release.scope.shield = False


def _copy(rows: FrameRows, of: Memory) -> PrivateMemory:
    """Return a copy of these rows, which the caller closes. Runs in a thread. Raises OSError, Unmapped."""
    picture = PrivateMemory(rows.size)
    try:
        with of.borrow() as view, picture.borrow() as to:
            copy_frame(rows, view, to, rows.row)
    except BaseException:
        picture.close()
        raise
    return picture
