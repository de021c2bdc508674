"""One surface with its role: an xdg_toplevel (desktops, Weston's desktop-shell and kiosk-shell) or an ivi_surface."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TYPE_CHECKING, Final

from .conn import Proxy

if TYPE_CHECKING:
    from .session import Session

__all__ = ["NoRole", "Window", "fit"]

MAXIMIZED: Final = 1
FULLSCREEN: Final = 2
TILED: Final = frozenset({5, 6, 7, 8})
SUSPENDED: Final = 9
"""xdg_toplevel.state"""
_STATE: Final = Struct("=I")


class NoRole(Exception):
    """The compositor has no shell for this surface; the text says why."""


def fit(width: int, height: int, into_width: int, into_height: int) -> tuple[int, int]:
    """The largest size of the same shape that fits."""
    if into_width * height <= into_height * width:
        return into_width, max(1, height * into_width // width)
    return max(1, width * into_height // height), into_height


class Window:
    """A surface on its way to the screen. `configured` is called when it may be drawn, or has another size; `closing` when its user
    wants it gone.

    `title` and `app_id` for xdg-shell; `ivi` is the surface's id for ivi-application, None: it has none.
    """

    def __init__(
        self,
        session: Session,
        title: str,
        app_id: str,
        ivi: int | None,
        configured: Callable[[], None],
        closing: Callable[[], None],
    ) -> None:
        self.ready = False
        """It may have a buffer."""
        self.suspended = False
        """The compositor says that it is not visible."""
        self.callbacks: set[Proxy] = set()
        """Frame callbacks that have not come. They never do when the surface goes first."""
        self._session = session
        self._conn = session.conn
        self._configured = configured
        self._closing = closing
        self._asked = (0, 0)
        self._states: frozenset[int] = frozenset()
        self._next: tuple[tuple[int, int], frozenset[int]] = ((0, 0), frozenset())
        self._on_screen: Proxy | None = None
        self.role = "ivi-application" if session.uses_ivi(ivi) else "xdg-shell"
        if self.role == "xdg-shell" and session.wm_base is None:
            raise NoRole(
                "the compositor has only ivi-application, and this connector no number"
                if session.ivi is not None
                else "the compositor has no shell that we know"
            )
        self.surface: Proxy = self._conn.keep(session.compositor.create_surface())
        self.viewport: Proxy = None
        if session.viewporter is not None:
            self.viewport = self._conn.keep(session.viewporter.get_viewport(self.surface))
        self._xdg: Proxy = None
        self._toplevel: Proxy = None
        self._ivi: Proxy = None
        if self.role == "ivi-application":
            self._become_ivi(ivi or 0)
        else:
            self._become_toplevel(title, app_id)

    def _become_ivi(self, number: int) -> None:
        self._ivi = self._conn.keep(self._session.ivi.surface_create(number, self.surface))
        self._conn.on(self._ivi, "configure", self._on_ivi_configure)
        self.ready = True

    def _on_ivi_configure(self, width: int, height: int) -> None:
        self._asked = (width, height)
        self._configured()

    def _become_toplevel(self, title: str, app_id: str) -> None:
        conn = self._conn
        self._xdg = conn.keep(self._session.wm_base.get_xdg_surface(self.surface))
        conn.on(self._xdg, "configure", self._on_configure)
        self._toplevel = conn.keep(self._xdg.get_toplevel())
        conn.on(self._toplevel, "configure", self._on_toplevel_configure)
        conn.on(self._toplevel, "close", self._closing)
        self._toplevel.set_title(title)
        self._toplevel.set_app_id(app_id)

    def begin(self, screen: Proxy | None) -> None:
        """Ask for the first configuration: full screen on this output, or as a window."""
        self._on_screen = screen
        if self._toplevel is not None:
            if screen is not None and self.viewport is not None:
                self._toplevel.set_fullscreen(screen)
            self.surface.commit()

    def move(self, screen: Proxy | None) -> None:
        """Full screen on this output from now on; None: the output has gone, where the compositor puts it is right."""
        if self._toplevel is not None and screen is not None and screen is not self._on_screen and self.viewport:
            self._toplevel.set_fullscreen(screen)
        self._on_screen = screen

    def _on_toplevel_configure(self, width: int, height: int, states: bytes) -> None:
        self._next = ((width, height), frozenset(state for (state,) in _STATE.iter_unpack(bytes(states))))

    def _on_configure(self, serial: int) -> None:
        self._asked, self._states = self._next
        self.suspended = SUSPENDED in self._states
        self._xdg.ack_configure(serial)
        self.ready = True
        self._configured()

    def destination(self, width: int, height: int, scale: str) -> tuple[int, int]:
        """The size of the surface for a picture of this size."""
        asked_width, asked_height = self._asked
        if self.viewport is None or asked_width <= 0 or asked_height <= 0:
            return width, height
        # A maximised or tiled surface has just the size that was asked for, or the compositor ends the connection; a full screen
        # one may be smaller and is put in the middle.
        exact = self._ivi is not None or MAXIMIZED in self._states or bool(self._states & TILED)
        if (exact and FULLSCREEN not in self._states) or scale == "stretch":
            return asked_width, asked_height
        if FULLSCREEN in self._states and scale == "none" and width <= asked_width and height <= asked_height:
            return width, height
        return fit(width, height, asked_width, asked_height)

    def destroy(self) -> None:
        """The surface goes, with all that it showed."""
        self._conn.destroy(self._toplevel, self._xdg, self._ivi, self.viewport, self.surface)
        while self.callbacks:
            self._conn.drop(self.callbacks.pop())
        self._conn.flush()
