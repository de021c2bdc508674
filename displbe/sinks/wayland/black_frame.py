"""The black frame of a surface whose guest shows nothing."""

from __future__ import annotations

import os

from displbe.sinks.sealed_memory import sealed_memfd
from displbe.xen.memory import PAGE_SIZE

from .link import Link
from .shm import XRGB8888, make_shm_buffer

__all__ = ["BlackFrame"]


class BlackFrame:
    """The black frame of one surface on one connection, in displbe's own memory.

    `scalable`: the surface has a viewport, so that one pixel is enough. Otherwise the frame has the size of the picture.
    """

    def __init__(self, link: Link, *, scalable: bool) -> None:
        self.is_attached = False
        """Whether the newest commit of the surface is the black frame."""
        self._link = link
        self._scalable = scalable
        self._newest: _Sized | None = None
        self._old: list[_Sized] = []
        """Frames of earlier sizes, which may be on the screen until the next commit."""

    def frame(self, width: int, height: int) -> _Sized:
        """Return a frame to attach for a picture of this size. Call `on_committed` after the commit.

        Without memory or a file for it, this is the frame that there is, of another size. Raises OSError if there is none.
        """
        size = (1, 1) if self._scalable else (width, height)
        before = self._newest
        if before is not None and before.size == size:
            return before
        try:
            self._newest = made = _Sized(self._link, size)
        except OSError:
            if before is None:
                raise
            return before
        if before is not None:
            self._old.append(before)
        return made

    def on_committed(self) -> None:
        """Take note that the newest frame is committed: those of earlier sizes are not needed any more."""
        self.is_attached = True
        while self._old:
            self._old.pop().close()

    def close(self) -> None:
        """Destroy the frames: the surface is destroyed, or the connection is gone."""
        if self._newest is not None:
            self._old.append(self._newest)
        self._newest = None
        while self._old:
            self._old.pop().close()


class _Sized:
    """A black frame of one size in pixels. New memory is zero, and a zero pixel of XRGB is black; so displbe does not map it.

    Raises OSError if there is no memory or no file for it.
    """

    def __init__(self, link: Link, size: tuple[int, int]) -> None:
        width, height = self.size = size
        self._conn = link.conn
        file_size = -(-4 * width * height // PAGE_SIZE) * PAGE_SIZE
        fd = sealed_memfd(file_size)
        try:
            self.wl = make_shm_buffer(self._conn, link.shm, fd, file_size, width, height, 4 * width, XRGB8888)
            """The wl_buffer."""
        finally:
            os.close(fd)

    def close(self) -> None:
        """Destroy the wl_buffer."""
        self._conn.destroy(self.wl)
