"""Frames that are copied, and the thread that copies them.

The frames are in displbe's own pools, which are sealed: neither side can make the other end by SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final

from displbe.sinks.base import CopyMemory, Geometry, Part
from displbe.sinks.copy_thread import CopyThread
from displbe.sinks.frame_copy import copy_frame, frame_rows
from displbe.sinks.sealed_memory import sealed_memfd
from displbe.wire.formats import FORMATS
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory, Unmapped

from .buffers import WaylandBuffer, shm_format
from .link import Link
from .shm import XRGB8888, make_shm_buffer

__all__ = ["CopyFrame", "CopyPool", "FrameCopying"]

FRAMES: Final = 3
"""Frames of a pool: one on the screen, one on its way there, and one to copy into."""


class CopyFrame:
    """A frame in a pool, as a wl_buffer. Raises OSError if there is no memory or no file for it."""

    path: Final = "copy"

    def __init__(self, link: Link, width: int, height: int, stride: int, number: int) -> None:
        size = -(-stride * height // PAGE_SIZE) * PAGE_SIZE
        fd = sealed_memfd(size)
        try:
            self.mapping = Mapping(fd, [(0, size)], writable=True)
            try:
                self.wl = make_shm_buffer(link.conn, link.shm, fd, size, width, height, stride, number)
            except BaseException:
                self.mapping.close()
                raise
        finally:
            os.close(fd)
        self.held = False
        """Whether the thread copies into the frame, or the compositor may read it."""


class CopyPool:
    """The copied frames of an output, all of one shape. Raises OSError if there is no memory or no file for them, or if the guest, whom
    `copies` charges, has too many. `released` is called when a frame can be used again.
    """

    def __init__(
        self, link: Link, geometry: Geometry, part: Part, copies: CopyMemory, released: Callable[[], None]
    ) -> None:
        self.link = link
        self.geometry = geometry
        self.part = part
        self._released = released
        number = shm_format(link, geometry.fourcc)
        pixel_bytes = FORMATS[geometry.fourcc].bits // 8
        self._converted = number is None
        self._rows = frame_rows(geometry, part)
        # Renderers count the stride in pixels and in words of 4 bytes: it is a multiple of both.
        self._stride = -(-part.width // 4) * 4 * (4 if number is None else pixel_bytes)
        self._frames: list[CopyFrame] = []
        self._uncharge = copies.charge(FRAMES * self._stride * part.height)
        try:
            for _ in range(FRAMES):
                self._frames.append(self._make(number if number is not None else XRGB8888))
        except BaseException:
            self.destroy()
            self.unmap()  # nothing has been written to them yet, so this costs nothing
            raise

    def _make(self, number: int) -> CopyFrame:
        frame = CopyFrame(self.link, self.part.width, self.part.height, self._stride, number)

        def on_release() -> None:
            frame.held = False
            self._released()

        self.link.conn.on(frame.wl, "release", on_release)
        return frame

    def take(self) -> CopyFrame | None:
        """Return a frame to copy into, which is held from now on; None while the compositor holds all of them."""
        for frame in self._frames:
            if not frame.held:
                frame.held = True
                return frame
        return None

    def copy(self, memory: Memory, to: CopyFrame) -> None:
        """Copy the guest's frame as it is now. Can be called in any thread. Raises Unmapped."""
        with memory.borrow() as view, to.mapping.borrow() as target:
            copy_frame(self._rows, view, target, self._stride, converted=self._converted)

    def destroy(self) -> None:
        """Destroy the frames at the compositor."""
        self.link.conn.destroy(*(frame.wl for frame in self._frames))

    def unmap(self) -> None:
        """Free the frames' memory here. Runs in the copying thread, because the kernel needs milliseconds for a large frame."""
        for frame in self._frames:
            frame.mapping.close()
        self._frames.clear()
        self._uncharge()


class FrameCopying:
    """The copying of one output: the pool, the thread, and pools of an earlier shape whose frames may still be on the screen.

    `copied` is called with the pool, the frame and the flip's serial number when a frame has been copied. `can_copy` is called when a frame
    can be copied that had to wait because the compositor held the whole pool.
    """

    def __init__(
        self,
        name: str,
        copied: Callable[[CopyPool, CopyFrame, int], None],
        can_copy: Callable[[], object],
    ) -> None:
        self._name = name
        self._pool: CopyPool | None = None
        self.old_pools: list[CopyPool] = []
        """Pools of earlier shapes."""
        self._thread: CopyThread | None = None
        self._frame_waits = False
        """Whether a frame waits to be copied because the compositor holds the whole pool."""
        self.is_short = False
        """Whether there was no memory, file or thread for the newest frame; copying is tried again soon. The owner sets this."""
        self._copied = copied
        self._can_copy = can_copy

    def start(self, link: Link, buffer: WaylandBuffer, part: Part, serial: int, copies: CopyMemory) -> bool:
        """Copy a buffer's frame in the thread. Return False if copies of another shape are under way: wait for `finished` first.

        Raises OSError if there is no memory, file or thread for it, or if the guest, whom `copies` charges, has too many copies.
        """
        if buffer.memory is None:
            return True
        self._thread = self._thread or CopyThread(self._name)
        pool = self._pool
        if pool is None or pool.part != part or pool.geometry != buffer.geometry or pool.link is not link:
            if not self._thread.resting:
                return False
            if pool is not None:
                self.old_pools.append(pool)
                self._pool = None
            pool = self._pool = CopyPool(link, buffer.geometry, part, copies, self._on_released)
        frame = pool.take()
        if frame is None:
            self._frame_waits = True
            return True
        self._thread.do(partial(self._copy, self._thread, pool, buffer.memory, frame, serial))
        return True

    def do(self, job: Callable[[CopyThread], None]) -> None:
        """Run a job in the thread, after the copies that were started. Raises NoThread."""
        self._thread = self._thread or CopyThread(self._name)
        self._thread.do(partial(job, self._thread))

    def _copy(self, thread: CopyThread, pool: CopyPool, memory: Memory, frame: CopyFrame, serial: int) -> None:
        """Copy a frame. Runs in the thread."""
        try:
            pool.copy(memory, frame)
        except Unmapped:  # the guest has taken the buffer back: there is nothing to show
            thread.tell(partial(self._on_ended, frame))
        else:
            thread.tell(partial(self._on_copied, pool, frame, serial))

    def _on_ended(self, frame: CopyFrame) -> None:
        frame.held = False

    def _on_copied(self, pool: CopyPool, frame: CopyFrame, serial: int) -> None:
        if pool is self._pool:
            self._copied(pool, frame, serial)
        else:
            frame.held = False

    def _on_released(self) -> None:
        if self._frame_waits:
            self._frame_waits = False
            self._can_copy()

    async def finished(self) -> None:
        """Wait until all copies that were started are done."""
        if self._thread is not None:
            await self._thread.idle()

    def close_old_pools(self) -> None:
        """Destroy the pools of earlier shapes: the surface has another frame now."""
        while self.old_pools:
            assert self._thread is not None  # it is started with the first pool
            pool = self.old_pools.pop()
            pool.destroy()
            self._thread.do(pool.unmap)

    def close_pools(self) -> None:
        """Destroy all pools. No copy may be under way."""
        if self._pool is not None:
            self.old_pools.append(self._pool)
        self._pool, self._frame_waits = None, False
        self.close_old_pools()

    async def close(self) -> None:
        """Destroy all pools, and end the thread when it has freed them. No copy may be under way."""
        self.close_pools()
        if self._thread is not None:
            await self._thread.close()
