"""Frames that are copied: pools of our own, sealed against shrinking, so that no compositor need fear to read them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from displbe.sinks.base import Geometry, Part
from displbe.sinks.convert import convert
from displbe.wire.formats import FORMATS
from displbe.xen.memory import PAGE_SIZE, Mapping, copy_rows

from .buffers import shm_format

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Copies", "Copy"]

FRAMES: Final = 3
"""One on the screen, one on its way there, one to copy into."""


class Copy:
    """A frame of ours. `busy`: it is being copied into, or the compositor may look at it."""

    def __init__(self, session: Session, width: int, height: int, stride: int, number: int) -> None:
        size = -(-stride * height // PAGE_SIZE) * PAGE_SIZE
        fd = os.memfd_create("displbe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.mapping = Mapping(fd, [(0, size)], writable=True)
            pool = session.conn.keep(session.shm.create_pool(fd, size))
        finally:
            os.close(fd)
        self.wl = session.conn.keep(pool.create_buffer(0, width, height, stride, number))
        session.conn.destroy(pool)
        self.busy = False


class Copies:
    """The copies of one output, for frames of one shape. `released` is called when one can be used again."""

    def __init__(self, session: Session, geometry: Geometry, part: Part, released: Callable[[], None]) -> None:
        self.shape = (geometry, part)
        self.session = session
        number = shm_format(session, geometry.fourcc)
        octets = FORMATS[geometry.fourcc].bits // 8
        self._geometry = geometry
        self._converted = number is None
        self._row = part.width * octets
        self._rows = part.height
        self._source = geometry.offset + part.y * geometry.stride + part.x * octets
        width = 4 if number is None else octets
        # A multiple of a pixel and of four octets: renderers count in both.
        self._stride = -(-part.width // 4) * 4 * width
        self._released = released
        self._frames: list[Copy] = []
        for _ in range(FRAMES):
            self._frames.append(self._make(number if number is not None else _XRGB))

    def _make(self, number: int) -> Copy:
        size = self.shape[1]
        frame = Copy(self.session, size.width, size.height, self._stride, number)

        def on_release() -> None:
            frame.busy = False
            self._released()

        self.session.conn.on(frame.wl, "release", on_release)
        return frame

    def take(self) -> Copy | None:
        """A frame to copy into, busy from now on; None while the compositor has all of them."""
        for frame in self._frames:
            if not frame.busy:
                frame.busy = True
                return frame
        return None

    def copy(self, view: memoryview, to: Copy) -> None:
        """The guest's frame as it is now. In any thread."""
        source, target = view[self._source :], to.mapping.view
        if self._converted:
            code = self._geometry.fourcc
            convert(code, target, self._stride, source, self._geometry.stride, self._row, self._rows)
        else:
            copy_rows(target, self._stride, source, self._geometry.stride, self._row, self._rows)

    def close(self) -> None:
        """Give them up. No copy is under way."""
        self.session.conn.destroy(*(frame.wl for frame in self._frames))
        for frame in self._frames:
            frame.mapping.close()
        self._frames.clear()


_XRGB: Final = 1
"""wl_shm.format.xrgb8888"""
