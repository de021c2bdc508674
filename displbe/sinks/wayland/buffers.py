"""The ways in which a guest's framebuffer gets to the compositor. One of three is chosen for each buffer on each connection:

* dmabuf: a dma-buf of the guest's pages, imported by linux-dmabuf.
* shm: a file of gntdev as a wl_shm pool; the compositor maps the guest's pages itself.
* copy: each frame is copied into a pool of displbe's own (copies.py).

A way that has failed for a buffer is not tried again for that buffer. A way that has ended a connection is not tried again for that guest.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from displbe.shortage import shortage
from displbe.sinks.base import Geometry, Part, SinkBuffer, SinkError, memory_of
from displbe.sinks.convert import CONVERTED
from displbe.threads import run_in_thread_or_here
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc, fourcc_name
from displbe.xen.memory import Memory
from displbe.xen.port import GuestBuffer, HypervisorError

from .conn import Connection, Proxy
from .link import Link
from .settings import WaylandSettings

__all__ = [
    "ACCEPTED",
    "BufferState",
    "DmabufHistory",
    "ImportHistory",
    "Unsuitable",
    "WaylandBuffer",
    "can_copy",
    "import_buffer",
    "shm_format",
]

LARGEST: Final = 2**31 - 1
"""The largest size of a wl_shm pool in bytes: wl_shm counts in signed 32 bits."""
SHARED: Final = "the compositor maps the guest's pages itself"
"""What a shared buffer's reason says first: its path is the same as that of a dma-buf."""
_SHM_CODES: Final = {fourcc("AR24"): 0, fourcc("XR24"): 1}
"""wl_shm.format has DRM's codes, except for these two."""


class Unsuitable(Exception):
    """A buffer cannot be imported in this way; the text says why."""


def shm_format(link: Link, code: int) -> int | None:
    """Return the wl_shm format for a DRM format, or None if the compositor has none.

    The format has no alpha channel, so that a guest's screen is opaque.
    """
    opaque = FORMATS[code].opaque
    number = _SHM_CODES.get(opaque, opaque)
    return number if number in link.shm_formats or number == 1 else None


def can_copy(link: Link, code: int) -> bool:
    """Return whether frames of this DRM format can be copied for this compositor."""
    return shm_format(link, code) is not None or code in CONVERTED


class BufferState(enum.Enum):
    """The state of a buffer at the compositor of the present connection."""

    NEW = "new"
    """The buffer has not been offered to the compositor yet, or there is no compositor."""
    DMABUF = "dmabuf"
    """The compositor has imported the guest's pages as a dma-buf."""
    SHM = "shm"
    """The compositor has mapped the guest's pages as a wl_shm pool."""
    COPY = "copy"
    """The compositor has no access to the guest's pages; frames are copied."""
    FAILED = "failed"
    """The compositor cannot show the buffer, even as a copy."""
    CLOSED = "closed"
    """The guest takes the buffer back."""


_WITHOUT: Final = {BufferState.DMABUF: "no dma-buf", BufferState.SHM: "not shared with the compositor"}
"""Words for a way that is not used, which the reason follows."""
ACCEPTED: Final = (BufferState.SHM, BufferState.DMABUF, BufferState.COPY)
"""The states in which the surface can be given frames of a buffer."""


class DmabufHistory:
    """The compositor's past dealings with the dma-bufs of all guests. The history is kept when the compositor goes and comes back."""

    def __init__(self) -> None:
        self.drawn = False
        """Whether the compositor has drawn a dma-buf. If it has, and is lost while it is to draw another one, that one was the cause."""
        self.refusal = ""
        """Why no guest's buffer is imported as a dma-buf any more; empty: they are."""


class ImportHistory:
    """The ways that are not tried again for any buffer of one guest."""

    def __init__(self, dmabufs: DmabufHistory) -> None:
        self._dmabufs = dmabufs
        self._refusals: dict[BufferState, str] = {}

    def refusal(self, way: BufferState) -> str:
        """Return why a way is not tried, or the empty string."""
        return self._refusals.get(way, "") or (self._dmabufs.refusal if way is BufferState.DMABUF else "")

    def refuse(self, way: BufferState, reason: str) -> None:
        """Do not try a way again for this guest."""
        self._refusals[way] = reason

    def on_dmabuf_drawn(self) -> None:
        """Take note that the compositor has drawn a dma-buf."""
        self._dmabufs.drawn = True

    def on_lost(self, buffer: WaylandBuffer) -> None:
        """Take note that the connection is lost. A dma-buf that was to be drawn for the first time counts as the cause."""
        if buffer.is_dmabuf and buffer.held and not buffer.drawn:
            reason = "the compositor was lost before it had shown one"
            if self._dmabufs.drawn:
                self.refuse(BufferState.DMABUF, reason)
            else:
                self._dmabufs.refusal = reason


class WaylandBuffer(SinkBuffer):
    """A guest's framebuffer on an output.

    `remove` removes the buffer from its output when the guest takes it back. `decided` is called when the compositor has accepted or
    refused it, `released` when the compositor no longer reads it.

    It has sixteen attributes: what the guest, the compositor and the history of imports know of a buffer is here.
    """

    def __init__(
        self,
        pages: GuestBuffer,
        geometry: Geometry,
        history: ImportHistory,
        remove: Callable[[WaylandBuffer], Awaitable[None]],
        decided: Callable[[WaylandBuffer], None],
        released: Callable[[WaylandBuffer], None],
    ) -> None:
        self.pages = pages
        self.geometry = geometry
        self.state = BufferState.NEW
        self.wl: Proxy = None
        """The wl_buffer; None: there is none."""
        self.memory: Memory | None = None
        """The guest's pages; None: they are not mapped in this process."""
        self.is_dmabuf = False
        """Whether the wl_buffer is a dma-buf, also of a closed buffer."""
        self.held = False
        """Whether the compositor may read the buffer: the buffer is attached, or was attached and has not been released yet."""
        self.drawn = False
        """Whether the buffer has been on the screen."""
        self.refusals: dict[BufferState, str] = {}
        """Ways that have failed for this buffer, with the reasons."""
        self.reason = ""
        """Why the buffer was not imported in a cheaper way, and that it is shared."""
        self.failure: SinkError | None = None
        """Why the compositor cannot show the buffer."""
        self._decided = trio.Event()
        self._history = history
        self._remove = remove
        self._on_decided = decided
        self._on_released = released

    @property
    def path(self) -> str:  # type: ignore[override]
        """How its frames get to the screen."""
        if self.wl is not None:
            return "zero copy"
        return "copy" if self.state is BufferState.COPY else ""

    @property
    def is_closed(self) -> bool:
        """Whether the guest takes the buffer back."""
        return self.state is BufferState.CLOSED

    @property
    def is_accepted(self) -> bool:
        """Whether the surface can be given frames of this buffer."""
        return self.state in ACCEPTED

    def shows_all(self, part: Part) -> bool:
        """Return whether a part is the whole framebuffer."""
        return part == Part(0, 0, self.geometry.width, self.geometry.height)

    async def map(self) -> Memory:
        """Return the guest's pages, to be borrowed. Raises SinkError."""
        if self.memory is None:
            self.memory = await memory_of(self.pages)
        return self.memory

    async def wait_decided(self) -> None:
        """Wait until the compositor has accepted or refused the buffer."""
        await self._decided.wait()

    def accept(self, way: BufferState, wl: Proxy, reason: str) -> None:
        """Take note that the compositor has the buffer, in this way. A closed one stays closed; its wl_buffer must still be destroyed."""
        if self.state is not BufferState.CLOSED:
            self.state = way
        self.wl, self.held, self.reason = wl, False, reason
        self.is_dmabuf = way is BufferState.DMABUF

    def fail(self, failure: SinkError) -> None:
        """Take note that the compositor cannot show the buffer."""
        if self.state is not BufferState.CLOSED:
            self.state, self.failure = BufferState.FAILED, failure

    def decide(self) -> None:
        """Report that the compositor has accepted or refused the buffer: end `wait_decided`, and call `decided`."""
        self._decided.set()
        self._on_decided(self)

    def reset(self) -> None:
        """Take note that there is no wl_buffer any more: the connection is gone, or the wl_buffer is destroyed."""
        self.wl, self.is_dmabuf, self.held, self.failure = None, False, False, None
        if self.state is not BufferState.CLOSED:
            self.state = BufferState.NEW
        if self._decided.is_set():  # an event that is not set is kept, because a task may wait for it
            self._decided = trio.Event()

    def on_release(self) -> None:
        """wl_buffer.release: the compositor no longer reads it."""
        self.held = False
        self._on_released(self)

    def on_drawn(self) -> None:
        """Take note that the compositor has shown the buffer."""
        self.drawn = True
        if self.is_dmabuf:
            self._history.on_dmabuf_drawn()

    async def aclose(self) -> None:
        self.state = BufferState.CLOSED
        await self._remove(self)


async def import_buffer(link: Link, buffer: WaylandBuffer, settings: WaylandSettings, history: ImportHistory) -> None:
    """Give the compositor a buffer in the first way that is suitable. Raises SinkError if no way is suitable, and conn.CompositorLost."""
    if settings.zero_copy != "off":
        await link.conn.sync()  # an error in an earlier request must not be taken for an error in this buffer
    reasons: list[str] = []
    wl: Proxy = None
    for way, work in ((BufferState.DMABUF, _import_dmabuf), (BufferState.SHM, _import_shm)):
        try:
            if settings.zero_copy == "off":
                raise Unsuitable("disabled by the configuration")
            refusal = history.refusal(way) or buffer.refusals.get(way)
            if refusal:
                raise Unsuitable(refusal)
            wl = await work(link, buffer, settings)
        except (Unsuitable, HypervisorError) as error:
            reasons.append(f"{_WITHOUT[way]}: {error}")
        except BaseException:  # CompositorLost, or cancelled because of it
            if link.conn.protocol_error:
                history.refuse(way, "the compositor ended the connection for it")
            raise
        else:
            break
    if way is BufferState.SHM and wl is not None:
        reasons.insert(0, SHARED)
    if wl is None:
        way = BufferState.COPY
        if not can_copy(link, buffer.geometry.fourcc):
            raise SinkError(Errno.EINVAL, f"the compositor cannot show format {fourcc_name(buffer.geometry.fourcc)}")
        await buffer.map()
    buffer.accept(way, wl, "; ".join(reasons))


def _check_sendable(conn: Connection, fd: int) -> None:
    """Check that a file can be sent to the compositor. Raises Unsuitable."""
    try:
        conn.check_sendable(fd)
    except OSError as error:
        raise Unsuitable(shortage(error)) from error


async def _import_dmabuf(link: Link, buffer: WaylandBuffer, settings: WaylandSettings) -> Proxy:
    """Import a dma-buf and return its wl_buffer. Raises Unsuitable, HypervisorError, CompositorLost.

    This uses zwp_linux_buffer_params_v1.create, never create_immed: a refused import by the latter may end the connection.
    """
    geometry, formats, conn = buffer.geometry, link.dmabuf_formats, link.conn
    if settings.dmabuf == "never":
        raise Unsuitable("disabled by the configuration")
    if formats is None or link.viewporter is None:
        raise Unsuitable("the compositor does not offer linux-dmabuf and viewporter")
    if settings.dmabuf == "auto" and formats.no_gpu:
        raise Unsuitable(formats.no_gpu)
    code = FORMATS[geometry.fourcc].opaque
    if not formats.takes(code):
        raise Unsuitable(f"the compositor does not import {fourcc_name(code)}")
    fd = await buffer.pages.dmabuf()
    _check_sendable(conn, fd)
    params = conn.keep(link.dmabuf.create_params())
    modifier = formats.modifier(code)
    params.add(fd, 0, geometry.offset, geometry.stride, modifier >> 32, modifier & 0xFFFFFFFF)
    done = trio.Event()
    made: list[Proxy] = []

    def created(proxy: Proxy) -> None:
        made.append(conn.adopt(proxy))
        done.set()

    conn.on(params, "created", created)
    conn.on(params, "failed", done.set)
    params.create(geometry.width, geometry.height, code, 0)
    conn.flush()
    await conn.wait(done)
    conn.destroy(params)
    if not made:
        buffer.refusals[BufferState.DMABUF] = "the compositor cannot import it"
        raise Unsuitable(buffer.refusals[BufferState.DMABUF])
    return made[0]


async def _import_shm(link: Link, buffer: WaylandBuffer, settings: WaylandSettings) -> Proxy:
    """Share the guest's pages as a wl_shm pool and return the wl_buffer. Raises Unsuitable, HypervisorError, CompositorLost.

    The file of the pool is gntdev's. The kernel does not ask who uses it: whoever has it can map, or copy from and to, every page that
    any guest grants to this domain (drivers/xen/gntdev.c, gntdev_ioctl_map_grant_ref, gntdev_ioctl_grant_copy), and nothing can take
    that away from the file. So the operator must have said that the compositor is trusted that far.
    """
    geometry, conn = buffer.geometry, link.conn
    if not settings.trust_compositor:
        raise Unsuitable("it would reach every page that is granted to this domain; trust-compositor allows it")
    number = shm_format(link, geometry.fourcc)
    if link.viewporter is None:
        raise Unsuitable("the compositor does not offer viewporter")
    if number is None:
        raise Unsuitable(f"the compositor's wl_shm has no {fourcc_name(geometry.fourcc)}")
    # Renderers count the stride in pixels (GL's row length) and in words of 32 bits (pixman), and do not check it.
    if geometry.stride % 4 or geometry.stride % (FORMATS[geometry.fourcc].bits // 8) or geometry.offset % 4:
        raise Unsuitable(f"stride {geometry.stride} or offset {geometry.offset} is not aligned")
    # libwayland's rule for create_buffer: the last row counts with its whole stride.
    if geometry.offset + geometry.stride * geometry.height > buffer.pages.size:
        raise Unsuitable("the stride of the last row reaches beyond the end of its pages")
    fd, start = await buffer.pages.shm_fd()
    try:
        if start + buffer.pages.size > LARGEST:
            raise Unsuitable("too large for wl_shm")
        _check_sendable(conn, fd)
        pool = conn.keep(link.shm.create_pool(fd, start + buffer.pages.size))
    finally:
        # If the compositor did not get it, this close gives thousands of grants back.
        with trio.CancelScope(shield=True):
            await run_in_thread_or_here(os.close, fd)
    wl = conn.keep(
        pool.create_buffer(start + geometry.offset, geometry.width, geometry.height, geometry.stride, number)
    )
    conn.destroy(pool)
    # The compositor maps the pool now. If it cannot, it reports a protocol error, and `sync` raises ProtocolError.
    await conn.sync()
    return wl
