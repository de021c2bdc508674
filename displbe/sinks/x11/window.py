"""One output's window: the memory that it shares with the X server, the picture that the server keeps, and where that lies in the window.

A frame takes three steps: it is copied into the shared memory (by a worker thread), the server copies it into a pixmap of its own, and
RENDER puts that into the window. The server can repeat the last step at any time, when the window is uncovered or has another size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import structlog
import trio
import xcffib
import xcffib.render
import xcffib.xproto as x

from displbe.sinks.base import Geometry, Part
from displbe.sinks.seat import SeatEvent
from displbe.xen.memory import PAGE_SIZE, Mapping, copy_rows, same_rows

from .seat import Place, WindowSeat
from .server import Event, PixelFormat, Server

__all__ = ["Window", "place"]

_log = structlog.get_logger("displbe.x11")
EVENTS: Final = (
    x.EventMask.Exposure
    | x.EventMask.StructureNotify
    | x.EventMask.FocusChange
    | x.EventMask.KeymapState
    | x.EventMask.KeyPress
    | x.EventMask.KeyRelease
    | x.EventMask.ButtonPress
    | x.EventMask.ButtonRelease
    | x.EventMask.PointerMotion
    | x.EventMask.EnterWindow
    | x.EventMask.LeaveWindow
)
ICONIC: Final = 3
FIXED_SIZE: Final = 0x30
"""WM_NORMAL_HINTS: there are a smallest and a largest size."""
TAKES_KEYS: Final = 1
"""WM_HINTS: give this window the keyboard."""


def place(scale: str, size: tuple[int, int], window: tuple[int, int]) -> Place:
    """Where a picture of this size lies in a window of that: `fit`, `stretch` or `none`."""
    (width, height), (there_x, there_y) = size, window
    if scale == "stretch":
        return 0, 0, there_x, there_y
    if scale == "fit":
        if there_x * height <= there_y * width:
            width, height = there_x, max(1, there_x * height // width)
        else:
            width, height = max(1, there_y * width // height), there_y
    return (there_x - width) // 2, (there_y - height) // 2, width, height


class _Canvas:
    """What one size and format of frames needs: shared memory, and the server's pixmap and picture."""

    def __init__(
        self, server: Server, window: int, kind: PixelFormat, width: int, height: int, read: Callable[[], None]
    ) -> None:
        self.shape = kind, width, height
        self.row = width * kind.octets
        self.stride = -(-self.row // 4) * 4  # X pads rows to 32 bits
        self._server = server
        octets = -(-self.stride * height // PAGE_SIZE) * PAGE_SIZE
        fd = os.memfd_create("displbe", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, octets)
            self.segment = server.attach(fd)
            self.memory = Mapping(fd, [(0, octets)], writable=True)
        finally:
            os.close(fd)
        server.on_read[self.segment] = read
        self.pixmap, self.gc, self.picture = server.new_id(), server.new_id(), server.new_id()
        server.core.CreatePixmap(kind.depth, self.pixmap, window, width, height)
        server.core.CreateGC(self.gc, self.pixmap, 0, [])
        # Beyond its edges it goes on as at the edge, or the interpolation would darken them.
        pad = [xcffib.render.Repeat.Pad]
        server.render.CreatePicture(self.picture, self.pixmap, kind.picture, xcffib.render.CP.Repeat, pad)
        self.empty = True
        """Nothing has been copied into it."""

    def put(self) -> None:
        """The shared memory into the pixmap; the server tells when it has read it."""
        kind, width, height = self.shape
        whole = (width, height, 0, 0, width, height, 0, 0)
        self._server.shm.PutImage(
            self.pixmap, self.gc, *whole, kind.depth, x.ImageFormat.ZPixmap, True, self.segment, 0
        )

    def free(self) -> None:
        """The server lets go of it, then we do. Nobody copies."""
        self.forget()
        self._server.render.FreePicture(self.picture)
        self._server.core.FreeGC(self.gc)
        self._server.core.FreePixmap(self.pixmap)
        self._server.shm.Detach(self.segment)

    def forget(self) -> None:
        """The server is lost."""
        self._server.on_read.pop(self.segment, None)
        self.memory.close()


class Window:
    """A window on one connection, which it outlives as a heap of useless numbers: then `forget` it.

    `tell` hears what keyboard and pointer say, `changed` is called when the window can be seen, or no more.
    """

    def __init__(
        self,
        server: Server,
        title: str,
        size: tuple[int, int],
        *,
        scale: str,
        fullscreen: bool,
        on_close: str,
        tell: Callable[[SeatEvent], None],
        changed: Callable[[], None],
    ) -> None:
        self.server = server
        self.visible = False
        self.size = size
        """As it is on the screen."""
        self.seat = WindowSeat(tell, self._where)
        self._scale = scale
        self._fullscreen = fullscreen
        self._on_close = on_close
        self._withdrawn = True
        """No window manager knows of it."""
        self._changed = changed
        self._canvas: _Canvas | None = None
        self._placed: object = None
        self._read = trio.Event()
        self._log = _log.bind(window=title)
        self.id = server.new_id()
        self._picture = server.new_id()
        self._create(title)

    def _create(self, title: str) -> None:
        server, atoms = self.server, self.server.atoms
        screen = server.screen
        shape = (0, 0, *self.size, 0, x.WindowClass.InputOutput, screen.root_visual)
        values = [screen.black_pixel, EVENTS]
        server.core.CreateWindow(
            screen.root_depth, self.id, screen.root, *shape, x.CW.BackPixel | x.CW.EventMask, values
        )
        server.render.CreatePicture(self._picture, self.id, server.window_format, 0, [])
        server.property(self.id, x.Atom.WM_NAME, x.Atom.STRING, title.encode("latin-1", "replace"))
        server.property(self.id, atoms["_NET_WM_NAME"], atoms["UTF8_STRING"], title.encode())
        server.property(self.id, x.Atom.WM_CLASS, x.Atom.STRING, b"displbe\0displbe\0")
        server.property(self.id, x.Atom.WM_HINTS, x.Atom.WM_HINTS, [TAKES_KEYS, 1, *(0,) * 7])
        protocols = [atoms["WM_DELETE_WINDOW"], atoms["_NET_WM_PING"]]
        server.property(self.id, atoms["WM_PROTOCOLS"], x.Atom.ATOM, protocols)
        server.on_event[self.id] = self._hear
        self.resize(self.size)
        self.show()

    def resize(self, size: tuple[int, int]) -> None:
        """Ask for this size, which is that of the guest's picture. The window manager decides."""
        if self._scale == "none":
            hints = [FIXED_SIZE, 0, 0, 0, 0, *size, *size, *(0,) * 9]
            self.server.property(self.id, x.Atom.WM_NORMAL_HINTS, x.Atom.WM_SIZE_HINTS, hints)
        self.server.core.ConfigureWindow(self.id, x.ConfigWindow.Width | x.ConfigWindow.Height, list(size))

    def show(self) -> None:
        """Onto the screen, again."""
        if self._withdrawn:
            self._withdrawn = False
            if self._fullscreen:  # each time: a window manager removes it from what is withdrawn (EWMH)
                atoms = self.server.atoms
                state = [atoms["_NET_WM_STATE_FULLSCREEN"]]
                self.server.property(self.id, atoms["_NET_WM_STATE"], x.Atom.ATOM, state)
        self.server.core.MapWindow(self.id)
        self.server.flush()

    # Frames

    def fit(self, code: int, part: Part) -> bool:
        """Prepare for frames of this format and size. False: the server cannot show them."""
        kind = self.server.formats.get(code)
        if kind is None:
            return False
        shape = kind, part.width, part.height
        if self._canvas is None or self._canvas.shape != shape:
            before, self._canvas = self._canvas, _Canvas(self.server, self.id, *shape, self._has_read)
            if before is not None:
                before.free()
                self.resize((part.width, part.height))
        return True

    def take(self, view: memoryview, geometry: Geometry, part: Part) -> bool:
        """In a worker thread: copy a frame into the shared memory. False: it is there already."""
        canvas = self._canvas
        assert canvas is not None
        octets = canvas.shape[0].octets
        of = view[geometry.offset + part.y * geometry.stride + part.x * octets :]
        image = canvas.memory.view, canvas.stride, of, geometry.stride, canvas.row, part.height
        if not canvas.empty and same_rows(*image):
            return False
        copy_rows(*image)
        canvas.empty = False
        return True

    async def put(self) -> None:
        """Show what has been taken; returns when the server has read it, or is lost."""
        assert self._canvas is not None
        self._read = trio.Event()
        self._canvas.put()
        self._draw()
        self.server.owe(self, trio.current_time())
        self.server.flush()
        await self._read.wait()

    def blank(self) -> None:
        """Black: the guest has switched its screen off."""
        if self._canvas is not None:
            self._canvas.free()
            self._canvas = None
        self.server.core.ClearArea(False, self.id, 0, 0, 0, 0)
        self.server.flush()

    def _where(self) -> Place:
        if self._canvas is None:
            return 0, 0, *self.size
        return place(self._scale, self._canvas.shape[1:], self.size)

    def _draw(self) -> None:
        """The pixmap into the window."""
        canvas = self._canvas
        if canvas is None or canvas.empty:
            return
        left, top, width, height = self._where()
        picture, scaled = canvas.picture, (width, height) != canvas.shape[1:]
        if self._placed != (canvas, width, height):
            self._placed = canvas, width, height
            # RENDER's matrix maps places in the window to places in the picture; fixed point, 16 bits after it.
            by = [round(65536 * of / to) for of, to in zip(canvas.shape[1:], (width, height), strict=True)]
            self.server.render.SetPictureTransform(picture, (by[0], 0, 0, 0, by[1], 0, 0, 0, 65536))
            if scaled:
                self.server.smooth(picture)
            self.server.core.ClearArea(False, self.id, 0, 0, 0, 0)
        over = xcffib.render.PictOp.Src
        self.server.render.Composite(over, picture, 0, self._picture, 0, 0, 0, 0, left, top, width, height)

    # Events

    def _hear(self, event: Event) -> None:
        match event:
            case x.ExposeEvent() if event.count == 0:
                self._draw()
            case x.ConfigureNotifyEvent():
                if (event.width, event.height) != self.size:
                    self.size = event.width, event.height
                    self._draw()
            case x.MapNotifyEvent():
                self.visible = True
                self._changed()
            case x.UnmapNotifyEvent():
                self.visible = False
                self.seat.leave()
                self._changed()
            case x.ClientMessageEvent():
                self._message(event)
            case _:
                self.seat.hear(event)

    def _has_read(self) -> None:
        self.server.paid(self)
        self._read.set()

    def _message(self, event: Event) -> None:
        atoms = self.server.atoms
        if event.type != atoms["WM_PROTOCOLS"]:
            return
        words = tuple(int(word) for word in event.data.data32)
        if words[0] == atoms["_NET_WM_PING"]:
            self.server.message(self.server.screen.root, event.type, words)
        elif words[0] == atoms["WM_DELETE_WINDOW"]:
            self._log.info("window closed by its user", policy=self._on_close)
            if self._on_close == "iconify":
                self.server.message(self.id, atoms["WM_CHANGE_STATE"], (ICONIC,))
            elif self._on_close == "detach":
                self._withdrawn = True
                self.server.core.UnmapWindow(self.id)

    # The end

    def close(self) -> None:
        """Off the screen. Raises nothing; the connection may be lost."""
        canvas, self._canvas = self._canvas, None
        try:
            if canvas is not None:
                canvas.free()
            self.server.render.FreePicture(self._picture)
            self.server.core.DestroyWindow(self.id)
            self.server.flush()
        except xcffib.XcffibException as error:
            self._log.debug("window not closed", reason=str(error))
        self.forget()

    def lose(self) -> None:
        """The connection is lost: nobody waits for it any more."""
        self.visible = False
        self.seat.leave()
        self._has_read()

    def forget(self) -> None:
        """Free what is ours; nobody copies any more."""
        self.lose()
        self.server.on_event.pop(self.id, None)
        if self._canvas is not None:
            self._canvas.forget()
            self._canvas = None
