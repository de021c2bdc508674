"""How a guest's framebuffer gets to the compositor: one of three ways, chosen for each buffer on each connection.

* `dmabuf`: a dma-buf of the guest's pages, by linux-dmabuf.
* `shm`: a file of gntdev's as a wl_shm pool: the compositor maps the guest's pages itself.
* `copy`: frames are copied into a pool of ours (copies.py).

What has failed on a buffer is not tried again with it, and what has cost a connection not again with that guest.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Final

import trio

from displbe.sinks.base import Geometry, SinkBuffer, SinkError, view_of
from displbe.sinks.convert import CONVERTED
from displbe.wire.errors import Errno
from displbe.wire.formats import FORMATS, fourcc, fourcc_name
from displbe.xen.port import GuestBuffer, HypervisorError

from .conn import Proxy
from .settings import WaylandSettings

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Unsuitable", "WaylandBuffer", "can_copy", "offer", "shm_format"]

LARGEST: Final = 2**31 - 1
"""wl_shm counts in signed 32 bits."""
_SHM_CODES: Final = {fourcc("AR24"): 0, fourcc("XR24"): 1}
"""wl_shm.format: DRM's codes, but for these two."""


class Unsuitable(Exception):
    """This way is none for this buffer; the text says why."""


def shm_format(session: Session, code: int) -> int | None:
    """The wl_shm format for a DRM format, without its alpha: a guest's screen is not to be seen through. None: there is none."""
    opaque = FORMATS[code].opaque
    number = _SHM_CODES.get(opaque, opaque)
    return number if number in session.shm_formats or number == 1 else None


def can_copy(session: Session, code: int) -> bool:
    """Whether frames of this format can be copied for this compositor."""
    return shm_format(session, code) is not None or code in CONVERTED


class WaylandBuffer(SinkBuffer):
    """A guest's framebuffer on an output. What the compositor has of it goes with the connection."""

    def __init__(
        self, guest: GuestBuffer, geometry: Geometry, remove: Callable[[WaylandBuffer], Awaitable[None]]
    ) -> None:
        self.guest = guest
        self.geometry = geometry
        self.way = ""
        """`dmabuf`, `shm` or `copy`; empty: not offered to a compositor yet."""
        self.wl: Proxy = None
        """The wl_buffer; None with `copy`."""
        self.view: memoryview | None = None
        """The guest's pages; None: not mapped."""
        self.busy = False
        """The compositor may look at it."""
        self.proved = False
        """It has been on the screen."""
        self.refused: dict[str, str] = {}
        """Ways that it cannot go, with the reason."""
        self.reason = ""
        """Why it goes that way and no cheaper one."""
        self.failure: SinkError | None = None
        """It cannot be shown at all."""
        self.settled = trio.Event()
        """Its way is chosen, or there is none."""
        self.closed = False
        self._remove = remove

    @property
    def path(self) -> str:  # type: ignore[override]
        """How its frames get to the screen."""
        return "zero copy" if self.wl is not None else self.way

    async def map(self) -> memoryview:
        """Its pages. Raises SinkError."""
        if self.view is None:
            self.view = await view_of(self.guest)
        return self.view

    def cold(self) -> None:
        """The connection is gone."""
        self.wl, self.way, self.busy, self.failure = None, "", False, None
        if self.settled.is_set():  # else somebody may wait for it
            self.settled = trio.Event()

    async def aclose(self) -> None:
        self.closed = True
        await self._remove(self)


async def offer(
    session: Session, buffer: WaylandBuffer, settings: WaylandSettings, refused: MutableMapping[str, str]
) -> None:
    """Make the compositor's buffer, in the first way that is suitable. Raises SinkError when there is none, conn.Lost.

    `refused` are the ways that have cost this guest a connection, with the reason.
    """
    if settings.zero_copy != "off":
        await session.conn.sync()  # what was asked before is not to be taken for the buffer's fault
    reasons: list[str] = []
    made: Proxy = None
    for way, work in (("dmabuf", _as_dmabuf), ("shm", _as_shm)):
        try:
            if settings.zero_copy == "off":
                raise Unsuitable("the configuration says so")
            why = refused.get(way) or buffer.refused.get(way)
            if why:
                raise Unsuitable(why)
            made = await work(session, buffer, settings.dmabuf)
        except (Unsuitable, HypervisorError) as error:
            reasons.append(f"no {way}: {error}")
        except BaseException:  # Lost, or cancelled for it
            if session.conn.refused:
                refused[way] = "the compositor ended the connection for it"
            raise
        else:
            break
    if made is None:
        way = "copy"
        if not can_copy(session, buffer.geometry.fourcc):
            raise SinkError(Errno.EINVAL, f"format {fourcc_name(buffer.geometry.fourcc)} cannot be shown here")
        await buffer.map()
    buffer.way, buffer.wl, buffer.busy, buffer.reason = way, made, False, "; ".join(reasons)


async def _as_dmabuf(session: Session, buffer: WaylandBuffer, dmabuf: str) -> Proxy:
    """zwp_linux_buffer_params_v1.create, never create_immed: a refusal of that may end the connection. Raises Unsuitable."""
    geometry, formats, conn = buffer.geometry, session.dmabuf_formats, session.conn
    if dmabuf == "never":
        raise Unsuitable("the configuration says never")
    if formats is None or session.viewporter is None:
        raise Unsuitable("the compositor offers none")
    if dmabuf == "auto" and formats.no_gpu:
        raise Unsuitable(formats.no_gpu)
    code = FORMATS[geometry.fourcc].opaque
    if not formats.takes(code):
        raise Unsuitable(f"the compositor takes no {fourcc_name(code)}")
    fd = await buffer.guest.dmabuf()
    params = conn.keep(session.dmabuf.create_params())
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
        buffer.refused["dmabuf"] = "the compositor cannot import it"
        raise Unsuitable(buffer.refused["dmabuf"])
    return made[0]


async def _as_shm(session: Session, buffer: WaylandBuffer, dmabuf: str) -> Proxy:
    """A pool over the guest's own pages. Raises Unsuitable, HypervisorError."""
    geometry, conn = buffer.geometry, session.conn
    number = shm_format(session, geometry.fourcc)
    if session.viewporter is None:
        raise Unsuitable("the compositor has no viewporter")
    if number is None:
        raise Unsuitable(f"wl_shm of this compositor has no {fourcc_name(geometry.fourcc)}")
    # Renderers count in pixels (GL's row length) and in words of 32 bits (pixman), and trust these numbers.
    if geometry.stride % 4 or geometry.stride % (FORMATS[geometry.fourcc].bits // 8) or geometry.offset % 4:
        raise Unsuitable(f"stride {geometry.stride} or offset {geometry.offset} is not aligned")
    # libwayland's rule for create_buffer: the last row counts with its whole stride.
    if geometry.offset + geometry.stride * geometry.height > buffer.guest.size:
        raise Unsuitable("its last row ends at the end of its pages")
    fd, start = await buffer.guest.shm_fd()
    try:
        if start + buffer.guest.size > LARGEST:
            raise Unsuitable("too large for wl_shm")
        pool = conn.keep(session.shm.create_pool(fd, start + buffer.guest.size))
    finally:
        os.close(fd)
    made = conn.keep(
        pool.create_buffer(start + geometry.offset, geometry.width, geometry.height, geometry.stride, number)
    )
    conn.destroy(pool)
    # The compositor maps it now. If it cannot, that is a protocol error: this connection is gone, and we are told here.
    await conn.sync()
    return made
