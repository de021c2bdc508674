"""The cursor of a compositor's seat over a guest's window: none over a guest that draws its own, else an arrow.

A client that sets no cursor leaves the cursor of the window that the pointer came from.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import structlog

from displbe.ops.log import SparseLog
from displbe.shortage import shortage
from displbe.sinks.sealed_memory import sealed_memfd

from .conn import Connection, Proxy
from .shm import ARGB8888, make_shm_buffer

__all__ = ["SeatCursor"]

_ARROW: Final = """
X
XX
X.X
X..X
X...X
X....X
X.....X
X......X
X.......X
X........X
X.........X
X......XXXXX
X...X..X
X..XX..X
X.X  X..X
XX   X..X
X     X..X
      X..X
       XX
""".strip("\n").split("\n")
"""The arrow, black with a white edge; its tip is the hot spot."""
_COLOURS: Final = {"X": b"\xff\xff\xff\xff", ".": b"\0\0\0\xff", " ": bytes(4)}
_WIDTH: Final = max(map(len, _ARROW))
_HEIGHT: Final = len(_ARROW)
_PIXELS: Final = b"".join(_COLOURS[sign] for row in _ARROW for sign in row.ljust(_WIDTH))
_ALL: Final = 2**31 - 1


class SeatCursor:
    """The cursor of one seat's pointer, on a surface of its own that is made when it is first shown.

    `factories` returns the compositor's wl_compositor and wl_shm.
    """

    def __init__(self, conn: Connection, factories: Callable[[], tuple[Proxy, Proxy]]) -> None:
        self._conn = conn
        self._factories = factories
        self._say = SparseLog(structlog.get_logger("displbe.wayland"))
        self._surface: Proxy = None
        self._buffer: Proxy = None

    def show(self, pointer: Proxy, serial: int) -> None:
        """Show the arrow. `serial` is that of the pointer's newest enter event."""
        if self._surface is None:
            compositor, shm = self._factories()
            try:
                self._buffer = self._make_buffer(shm)
            except OSError as error:
                self._say("no cursor is shown over a guest that draws none", shortage(error))
                self.hide(pointer, serial)
                return
            self._surface = self._conn.keep(compositor.create_surface())
        pointer.set_cursor(serial, self._surface, 0, 0)
        # wl_pointer.set_cursor: a surface that is no longer the cursor is unmapped, so it needs its buffer again.
        self._surface.attach(self._buffer, 0, 0)
        self._surface.damage_buffer(0, 0, _ALL, _ALL)
        self._surface.commit()

    def hide(self, pointer: Proxy, serial: int) -> None:
        """Show no cursor: the guest draws its own. `serial` is that of the pointer's newest enter event."""
        pointer.set_cursor(serial, None, 0, 0)

    def _make_buffer(self, shm: Proxy) -> Proxy:
        fd = sealed_memfd(len(_PIXELS))
        try:
            os.pwrite(fd, _PIXELS, 0)
            return make_shm_buffer(self._conn, shm, fd, len(_PIXELS), _WIDTH, _HEIGHT, 4 * _WIDTH, ARGB8888)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Destroy the surface: the seat has no pointer any more."""
        self._conn.destroy(self._surface, self._buffer)
        self._surface = self._buffer = None
