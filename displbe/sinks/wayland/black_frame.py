"""The black frame of a surface whose guest shows nothing."""

from __future__ import annotations

from typing import Final

from .conn import Proxy
from .copies import CopyFrame
from .link import Link

__all__ = ["BlackFrame"]

XRGB: Final = 1
"""wl_shm.format.xrgb8888"""


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
        """Return a frame to attach for a picture of this size. Call `on_committed` after the commit."""
        size = (1, 1) if self._scalable else (width, height)
        if self._newest is None or self._newest.size != size:
            if self._newest is not None:
                self._old.append(self._newest)
            self._newest = _Sized(self._link, size)
        return self._newest

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
    """A black frame of one size in pixels. New memory is zero, and a zero pixel of XRGB is black."""

    def __init__(self, link: Link, size: tuple[int, int]) -> None:
        self.size = size
        self._link = link
        self._frame = CopyFrame(link, *size, 4 * size[0], XRGB)

    @property
    def wl(self) -> Proxy:
        """The wl_buffer."""
        return self._frame.wl

    def close(self) -> None:
        self._link.conn.destroy(self._frame.wl)
        self._frame.mapping.close()
