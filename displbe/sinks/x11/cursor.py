"""The X server's cursor over one window: hidden over the picture of a guest that draws its own."""

from __future__ import annotations

import enum

import xcffib.xproto as x

from displbe.sinks.seat import WindowListeners

from .server import Server

__all__ = ["CursorState", "WindowCursor"]


class CursorState(enum.Enum):
    """The cursor that the server shows while the pointer is over the window."""

    SERVER = "server"
    """The server's cursor, which the window inherits from the root window."""
    HIDDEN = "hidden"
    """An empty cursor: the user sees the guest's own."""


class WindowCursor:
    """The cursor of a window, whose seat says whether its guest gets the pointer. `policy` is the setting `cursor`.

    Methods raise xcffib.XcffibException when the connection is lost.
    """

    def __init__(self, server: Server, window: int, seat: WindowListeners, policy: str) -> None:
        self.state = CursorState.SERVER
        self._server = server
        self._window = window
        self._seat = seat
        self._policy = policy
        self._empty = 0
        """The id of the empty cursor; 0: it has not been needed yet."""

    def update(self, *, over_picture: bool) -> None:
        """Set the cursor. `over_picture`: the pointer is over the guest's picture, or was there last; on the black borders, and while the
        guest's screen is off, the guest's own cursor does not show where the pointer is.
        """
        own = self._seat.takes_pointer if self._policy == "auto" else self._policy == "hide"
        state = CursorState.HIDDEN if over_picture and own else CursorState.SERVER
        if state is self.state:
            return
        self.state = state
        cursor = self._empty_cursor() if state is CursorState.HIDDEN else x.Cursor._None
        self._server.core.ChangeWindowAttributes(self._window, x.CW.Cursor, [cursor])
        self._server.flush()

    def _empty_cursor(self) -> int:
        """Return the id of a cursor without a pixel; make it at first."""
        if not self._empty:
            server = self._server
            self._empty, mask, gc = server.new_id(), server.new_id(), server.new_id()
            server.core.CreatePixmap(1, mask, self._window, 1, 1)
            server.core.CreateGC(gc, mask, x.GC.Foreground, [0])
            server.core.PolyFillRectangle(mask, gc, 1, [x.RECTANGLE.synthetic(0, 0, 1, 1)])  # a pixmap begins undefined
            server.core.CreateCursor(self._empty, mask, mask, 0, 0, 0, 0, 0, 0, 0, 0)
            server.core.FreeGC(gc)
            server.core.FreePixmap(mask)
        return self._empty

    def free(self) -> None:
        """Free the empty cursor. The window is about to be destroyed."""
        if self._empty:
            self._server.core.FreeCursor(self._empty)
            self._empty = 0
