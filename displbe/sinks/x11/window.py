"""One output's window, the memory that it shares with the X server, and the copy of the frame that the server keeps.

A frame takes three steps: a worker thread copies it into the shared memory, the server copies that into a pixmap of its own, and RENDER
draws the pixmap into the window. The last step can be repeated at any time, when the window is uncovered or its size changes.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
from collections.abc import Callable
from typing import Final

import structlog
import trio
import xcffib
import xcffib.render
import xcffib.xproto as x

from displbe.sinks.base import CopyMemory, Geometry, Part
from displbe.sinks.fitting import fit
from displbe.sinks.frame_copy import copy_frame, frame_rows, same_frame
from displbe.sinks.sealed_memory import sealed_memfd
from displbe.sinks.seat import WindowListeners
from displbe.xen.memory import PAGE_SIZE, Mapping, Memory, close_in_thread

from .cursor import WindowCursor
from .keyboard_grab import KeyboardGrab
from .placement import WindowPlacement
from .server import Event, PixelFormat, PreparedRequest, Server
from .settings import X11Settings
from .window_input import Area, WindowInput

__all__ = ["Window", "WindowState", "picture_area"]

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
PUT_IMAGE: Final = struct.Struct("=xx2xIIHHHHHHhhBBBxII")
OPCODE_PUT_IMAGE: Final = 3
"""MIT-SHM's PutImage (shm.xml of xcb-proto)."""
COMPOSITE: Final = struct.Struct("=xx2xB3xIIIhhhhhhHH")
OPCODE_COMPOSITE: Final = 8
"""RENDER's Composite (render.xml of xcb-proto)."""
ICONIC_STATE: Final = 3
"""IconicState of WM_CHANGE_STATE (ICCCM 4.1.4)."""
MAX_FIXED: Final = 0x7FFFFFFF
"""The largest number in RENDER's FIXED (16.16)."""
INPUT_HINT: Final = 1
"""InputHint of WM_HINTS: the window manager gives this window the keyboard."""


class WindowState(enum.Enum):
    """Whether the window can be seen."""

    WITHDRAWN = "withdrawn"
    """The window is not on the desktop, and the window manager does not know it: it is new, or its user has closed it."""
    HIDDEN = "hidden"
    """The window has been mapped, but is not on the screen: the server has not mapped it yet, or it is iconified."""
    VISIBLE = "visible"
    """The window is on the screen."""
    DESTROYED = "destroyed"
    """Another X client has destroyed the window, for its user. The connection is there."""
    LOST = "lost"
    """The connection to the server is lost, and the window with it."""


# Looked up once, for the path of every flip: access to an enum's member costs more than a call in Python 3.11.
_VISIBLE: Final = WindowState.VISIBLE
_GONE: Final = (WindowState.DESTROYED, WindowState.LOST)


def picture_area(scale: str, picture: tuple[int, int], window: tuple[int, int]) -> Area:
    """Return where a picture lies in a window, given the sizes of both. `scale` is `fit`, `stretch` or `none`."""
    (width, height), (window_width, window_height) = picture, window
    if scale == "stretch":
        return 0, 0, window_width, window_height
    if scale == "fit":
        width, height = fit(width, height, window_width, window_height)
    return (window_width - width) // 2, (window_height - height) // 2, width, height


class _Canvas:
    """The resources for frames of one size and format: the shared memory, and the server's pixmap and picture.

    Raises OSError if there is no memory or no file for them, or if the guest, whom `copies` charges, has too many.
    """

    def __init__(
        self,
        server: Server,
        window: int,
        kind: PixelFormat,
        width: int,
        height: int,
        copies: CopyMemory,
        on_read: Callable[[], None],
    ) -> None:
        self.shape = kind, width, height
        self.row = width * kind.pixel_size
        """Bytes of a row's pixels."""
        self.stride = -(-self.row // 4) * 4  # X pads rows to 32 bits
        self._server = server
        size = -(-self.stride * height // PAGE_SIZE) * PAGE_SIZE
        with contextlib.ExitStack() as undo:
            self._uncharge = copies.charge(size)
            undo.callback(self._uncharge)
            fd = sealed_memfd(size)
            try:
                self.segment = server.attach(fd)
                undo.callback(server.shm.Detach, self.segment)
                self.memory = Mapping(fd, [(0, size)], writable=True)
            finally:
                os.close(fd)
            undo.pop_all()
        server.on_read[self.segment] = on_read
        self.pixmap, self.gc, self.picture = server.new_id(), server.new_id(), server.new_id()
        whole = (width, height, 0, 0, width, height, 0, 0)
        body = PUT_IMAGE.pack(self.pixmap, self.gc, *whole, kind.depth, x.ImageFormat.ZPixmap, True, self.segment, 0)
        self._put_image = PreparedRequest(server.shm, OPCODE_PUT_IMAGE, body)
        server.core.CreatePixmap(kind.depth, self.pixmap, window, width, height)
        server.core.CreateGC(self.gc, self.pixmap, 0, [])
        # Pixels outside the picture repeat those at its edge; otherwise interpolation would darken the edges.
        pad = [xcffib.render.Repeat.Pad]
        server.render.CreatePicture(self.picture, self.pixmap, kind.render_id, xcffib.render.CP.Repeat, pad)
        self.empty = True
        """No frame has been copied into the shared memory yet."""

    def put(self) -> None:
        """Let the server copy the shared memory into the pixmap. The server reports when it has read the memory."""
        self._put_image.send()

    async def free(self) -> None:
        """Free the resources here and on the server."""
        try:
            self._server.render.FreePicture(self.picture)
            self._server.core.FreeGC(self.gc)
            self._server.core.FreePixmap(self.pixmap)
            self._server.shm.Detach(self.segment)
        finally:
            await self.forget()

    async def forget(self) -> None:
        """Free the resources here only: the connection is lost."""
        self._server.on_read.pop(self.segment, None)
        try:
            await close_in_thread(self.memory.close)
        finally:
            self._uncharge()


class Window:
    """A window on one connection. When the connection is lost, call `lose` at once, and then `forget`.

    Input events go to `seat`. `on_visibility` is called when the window becomes visible, and when it no longer is. The window fills the
    monitor of the name `monitor`, if it is not empty. Methods raise xcffib.XcffibException when the connection is lost, unless they say
    otherwise.

    It has eighteen attributes: the window, what belongs to it on this connection, and two requests that are prepared.
    """

    def __init__(
        self,
        server: Server,
        title: str,
        size: tuple[int, int],
        settings: X11Settings,
        monitor: str,
        seat: WindowListeners,
        on_visibility: Callable[[], None],
    ) -> None:
        self.server = server
        self.state = WindowState.WITHDRAWN
        self.size = size
        """Width and height on the screen, in pixels."""
        self._settings = settings
        self._on_visibility = on_visibility
        self._input = WindowInput(seat.tell, self._area)
        self._canvas: _Canvas | None = None
        """The resources for the current frames; None: the window is black."""
        self._scaled_for: object = None
        """The canvas and the size on the screen for which the picture's transform is set."""
        self._composite: PreparedRequest | None = None
        """The request that draws the pixmap into the window."""
        self._read = trio.Event()
        """Set when the server has read the last frame that was put, or is lost, and before the first frame."""
        self._read.set()
        self._when_read: Callable[[], None] | None = None
        """Called at the same time."""
        self._drawn_for: object = None
        """The canvas and the window's size for which `_composite` is prepared."""
        self._log = _log.bind(window=title)
        self.id = server.new_id()
        self._picture = server.new_id()
        self._cursor = WindowCursor(server, self.id, seat, settings.cursor)
        self._grab = KeyboardGrab(server, self.id, seat, settings.inhibit_shortcuts)
        self._placement = WindowPlacement(server, self.id, settings, monitor)
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
        server.set_property(self.id, x.Atom.WM_NAME, x.Atom.STRING, title.encode("latin-1", "replace"))
        server.set_property(self.id, atoms["_NET_WM_NAME"], atoms["UTF8_STRING"], title.encode())
        server.set_property(self.id, x.Atom.WM_CLASS, x.Atom.STRING, b"displbe\0displbe\0")
        server.set_property(self.id, x.Atom.WM_HINTS, x.Atom.WM_HINTS, [INPUT_HINT, 1, *(0,) * 7])
        protocols = [atoms["WM_DELETE_WINDOW"], atoms["_NET_WM_PING"]]
        server.set_property(self.id, atoms["WM_PROTOCOLS"], x.Atom.ATOM, protocols)
        server.on_event[self.id] = self._handle
        self._placement.resize(self.size)
        self.show()

    @property
    def complaint(self) -> str:
        """Why the window is not where the configuration wants it; empty: it is."""
        return self._placement.complaint

    def follow_monitors(self) -> None:
        """Follow the monitors: they have changed."""
        if not self.is_gone:
            self._placement.follow(mapped=self.state is not WindowState.WITHDRAWN)

    def show(self) -> None:
        """Map the window, unless it is mapped already. An iconified one becomes a window again. Nothing that a guest does may call this:
        window managers focus and raise a window that is mapped.
        """
        if self.is_gone:
            return
        if self.state is WindowState.WITHDRAWN:
            self.state = WindowState.HIDDEN
            self._placement.before_map()
            self.server.core.MapWindow(self.id)
            self._placement.after_map()
        else:
            self.server.core.MapWindow(self.id)
        self.server.flush()

    @property
    def is_gone(self) -> bool:
        """Whether the server has the window no longer."""
        return self.state in _GONE

    @property
    def is_taken_away(self) -> bool:
        """Whether the user has closed the window, or another client has destroyed it."""
        return self.state in (WindowState.WITHDRAWN, WindowState.DESTROYED)

    def _enter(self, state: WindowState) -> None:
        """Change the state. Call `on_visibility` if that makes the window visible or hides it, or if the user has taken it away."""
        before, self.state = self.state, state
        if state is not WindowState.VISIBLE:
            self._input.leave()
            if not self.is_gone:
                self._grab.leave()
        if not self.is_gone:
            self._follow_picture()
        if (before is WindowState.VISIBLE) != (state is WindowState.VISIBLE) or self.is_taken_away:
            self._on_visibility()

    # Frames

    @property
    def is_unread(self) -> bool:
        """Whether the server has not read the last frame that was put."""
        return not self._read.is_set()

    async def prepare(self, code: int, part: Part, copies: CopyMemory) -> bool:
        """Prepare for frames of this DRM format and size. Return False if the server does not support the format.

        Raises OSError if there is no memory or no file for them, or if the guest, whom `copies` charges, has too many.
        """
        kind = self.server.formats.get(code)
        if kind is None:
            return False
        shape = kind, part.width, part.height
        if self._canvas is None or self._canvas.shape != shape:
            before = self._canvas
            try:
                self._canvas = _Canvas(self.server, self.id, *shape, copies, self._on_read)
            except OSError:
                await self.blank()  # without the old one, there may be enough for the next try
                raise
            if before is not None:
                await before.free()
            self._fit(part.width, part.height)
            self.follow_seat()
        return True

    def resize(self, picture: tuple[int, int]) -> None:
        """Take the size of a picture (width and height in pixels) that there is not yet."""
        if not self.is_gone:
            self._fit(*picture)
            self.server.flush()

    def _fit(self, width: int, height: int) -> None:
        """Ask for the size of the picture, unless that has been done: the user may have chosen another size since."""
        if (width, height) != self._placement.picture:
            self._placement.resize((width, height))

    def suits(self, geometry: Geometry, part: Part) -> bool:
        """Return whether a frame can be copied now, without `prepare`: the window is visible, and the server has read the last one."""
        canvas = self._canvas
        if canvas is None or self.state is not _VISIBLE or not self._read.is_set():
            return False
        kind, width, height = canvas.shape
        return self.server.formats.get(geometry.fourcc) is kind and width == part.width and height == part.height

    def copy(self, memory: Memory, geometry: Geometry, part: Part) -> bool:
        """Copy a frame into the shared memory. Return False if it is there already. Runs in a worker thread; sends no request.

        Raises Unmapped.
        """
        canvas = self._canvas
        assert canvas is not None
        with memory.borrow() as view, canvas.memory.borrow() as target:
            frame = frame_rows(geometry, part), view, target, canvas.stride
            if not canvas.empty and same_frame(*frame):
                return False
            copy_frame(*frame)
        canvas.empty = False
        return True

    def has(self, memory: Memory, geometry: Geometry, part: Part) -> bool:
        """Return whether the shared memory has a frame's pixels, as they are now. Runs in a thread, if `suits`. Raises Unmapped."""
        canvas = self._canvas
        assert canvas is not None
        with memory.borrow() as view, canvas.memory.borrow() as target:
            return not canvas.empty and same_frame(frame_rows(geometry, part), view, target, canvas.stride)

    async def put(self) -> None:
        """Show the frame that `copy` has copied. Return when the server has read it, or is lost."""
        self._put()
        self.server.flush()
        await self._read.wait()

    def put_then(self, read: Callable[[], None]) -> None:
        """Show the frame that `copy` has copied, and call `read` when the server has read it, or is lost. Not for handlers of events."""
        self._put()
        self._when_read = read
        self.server.send()

    def _put(self) -> None:
        assert self._canvas is not None
        self._read = trio.Event()
        self._canvas.put()
        self._draw()
        self.server.expect_answer(self)

    async def is_read(self) -> None:
        """Return when the server has read the last frame that was put, or is lost."""
        await self._read.wait()

    async def blank(self) -> None:
        """Make the window black: the guest has switched its screen off."""
        if self._canvas is not None:
            canvas, self._canvas = self._canvas, None
            await canvas.free()
            if not self.is_gone:
                self.server.core.ClearArea(False, self.id, 0, 0, 0, 0)
                self.follow_seat()
            self.server.flush()

    def on_seat_change(self) -> None:
        """Take note that the seat has other listeners, or passes events to them or not."""
        if not self.is_gone:
            self._input.tell_locks()
            self.follow_seat()

    def follow_seat(self) -> None:
        """Follow the guest: it takes pointer and keyboard or not, and has a picture or not."""
        self._update_cursor()
        self._grab.update()
        self._follow_picture()

    def _update_cursor(self) -> None:
        self._cursor.update(over_picture=self._canvas is not None and self._input.over_picture)

    def _follow_picture(self) -> None:
        """Keep the screen on while the guest's picture is on it, if so configured."""
        if self._settings.inhibit_idle:
            seen = self._canvas is not None and self.state is WindowState.VISIBLE
            self.server.screen_saver.keep_on(self.id, seen)

    def _area(self) -> Area:
        """Return where the picture lies in the window."""
        if self._canvas is None:
            return 0, 0, *self.size
        return picture_area(self._settings.scale, self._canvas.shape[1:], self.size)

    def _draw(self) -> None:
        """Let RENDER draw the pixmap into the window."""
        canvas = self._canvas
        if canvas is None or canvas.empty or self.is_gone:
            return
        if self._composite is None or self._drawn_for != (canvas, self.size):
            self._composite = self._scale_to_window(canvas)
            self._drawn_for = canvas, self.size
        self._composite.send()

    def _scale_to_window(self, canvas: _Canvas) -> PreparedRequest:
        """Scale the picture to the window. Return the request that draws it."""
        left, top, width, height = self._area()
        picture, scaled = canvas.picture, (width, height) != canvas.shape[1:]
        if self._scaled_for != (canvas, width, height):
            self._scaled_for = canvas, width, height
            # RENDER's matrix maps window coordinates to picture coordinates, in 16.16 fixed point.
            factors = [
                min(round(65536 * source / target), MAX_FIXED)
                for source, target in zip(canvas.shape[1:], (width, height), strict=True)
            ]
            matrix = (factors[0], 0, 0, 0, factors[1], 0, 0, 0, 65536)
            self.server.render.SetPictureTransform(picture, matrix)
            if scaled:
                self.server.set_bilinear(picture)
            self.server.core.ClearArea(False, self.id, 0, 0, 0, 0)
        body = COMPOSITE.pack(xcffib.render.PictOp.Src, picture, 0, self._picture, *(0,) * 4, left, top, width, height)
        return PreparedRequest(self.server.render, OPCODE_COMPOSITE, body)

    # Events

    def _handle(self, event: Event) -> None:
        match event:
            case x.ExposeEvent() if event.count == 0:
                self._draw()
            case x.ConfigureNotifyEvent():
                # The server never makes a window of 0x0 (CreateWindow, ConfigureWindow: Value error), but any client can say so.
                if event.width and event.height and (event.width, event.height) != self.size:
                    self.size = event.width, event.height
                    self._draw()
            case x.MapNotifyEvent() if self.state is WindowState.HIDDEN:
                self._enter(WindowState.VISIBLE)
            case x.UnmapNotifyEvent() if self.state is WindowState.VISIBLE:
                self._enter(WindowState.HIDDEN)
            case x.DestroyNotifyEvent() if not self.is_gone:
                self._log.info("window destroyed by another X client: displbectl reopen opens it again")
                self._enter(WindowState.DESTROYED)
            case x.ClientMessageEvent() if not self.is_gone:
                self._handle_message(event)
            case _ if self.state is WindowState.VISIBLE:
                was_over_picture = self._input.over_picture
                self._input.handle(event)
                self._grab.handle(event)
                if self._input.over_picture != was_over_picture:  # `follow_seat` does it after all other changes
                    self._update_cursor()

    def _on_read(self) -> None:
        self.server.answered(self)
        self._read.set()
        read, self._when_read = self._when_read, None
        if read is not None:
            read()

    def _handle_message(self, event: Event) -> None:
        atoms = self.server.atoms
        if event.type != atoms["WM_PROTOCOLS"]:
            return
        words = tuple(int(word) for word in event.data.data32)
        if words[0] == atoms["_NET_WM_PING"]:
            self.server.send_message(self.server.screen.root, event.type, words)
        elif words[0] == atoms["WM_DELETE_WINDOW"]:
            self._on_close_asked()

    def _on_close_asked(self) -> None:
        """React to the user, who closes the window. The guest goes on in any case."""
        policy = self._settings.on_close
        self._log.info("window closed by its user", policy=policy)
        if policy == "iconify":
            self.server.send_message(self.id, self.server.atoms["WM_CHANGE_STATE"], (ICONIC_STATE,))
        elif policy == "detach":
            self.server.core.UnmapWindow(self.id)
            self._enter(WindowState.WITHDRAWN)

    # The end

    async def close(self) -> None:
        """Destroy the window. Raises nothing: the connection may be lost."""
        canvas, self._canvas = self._canvas, None
        try:
            if canvas is not None:
                await canvas.free()
            self._cursor.free()
            if self.state is not WindowState.DESTROYED:  # its picture is destroyed with it
                self.server.screen_saver.keep_on(self.id, False)
                self.server.render.FreePicture(self._picture)
                self.server.core.DestroyWindow(self.id)
            self.server.flush()
        except xcffib.XcffibException as error:
            self._log.debug("window not destroyed: the X server is lost", reason=str(error))
        await self.forget()

    def lose(self) -> None:
        """Take note that the connection is lost. `put` then returns."""
        self._enter(WindowState.LOST)
        self._on_read()

    async def forget(self) -> None:
        """Free this process's resources."""
        self.lose()
        self.server.on_event.pop(self.id, None)
        canvas, self._canvas = self._canvas, None
        if canvas is not None:
            await canvas.forget()
