"""One connection and the globals that its compositor offers, collected while they are announced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .conn import Connection, Global, Proxy
from .cursor import SeatCursor
from .dmabuf_feedback import DmabufFormats
from .seat_devices import SeatDevices, SeatTarget
from .wl_outputs import WlOutputs

__all__ = ["EXTENSIONS", "Link"]

EXTENSIONS: Final = {
    "wp_fractional_scale_manager_v1": "fractional-scale",
    "zxdg_decoration_manager_v1": "xdg-decoration",
    "zwp_idle_inhibit_manager_v1": "idle-inhibit",
    "zwp_keyboard_shortcuts_inhibit_manager_v1": "keyboard-shortcuts-inhibit",
}
"""Globals that surfaces use where they are offered -> the names of their protocols."""


class Link:
    """A connection and what its compositor offers; a global that it does not offer is None.

    `changed` is called when outputs, seats or dma-buf formats change. `find` returns the guest's window that a wl_surface belongs to, or
    None. It has sixteen attributes: most are one global each.
    """

    def __init__(
        self, conn: Connection, shell: str, changed: Callable[[], None], find: Callable[[Proxy], SeatTarget | None]
    ) -> None:
        self.conn = conn
        self.compositor: Proxy = None
        self.shm: Proxy = None
        self.wm_base: Proxy = None
        self.ivi: Proxy = None
        self.viewporter: Proxy = None
        self.presentation: Proxy = None
        self.dmabuf: Proxy = None
        self.dmabuf_formats: DmabufFormats | None = None
        self.extensions: dict[str, Proxy] = {}
        """The globals of EXTENSIONS that the compositor offers."""
        self.shm_formats: set[int] = set()
        self.outputs = WlOutputs(conn, changed)
        self.seats: dict[int, SeatDevices] = {}
        self._shell = shell
        self._changed = changed
        self._find = find

    def on_appeared(self, announced: Global) -> None:
        """Bind a global that the compositor announces."""
        match announced.interface:
            case "wl_compositor":
                self.compositor = self.conn.bind(announced)
            case "wl_shm":
                self.shm = self.conn.bind(announced)
                self.conn.on(self.shm, "format", self.shm_formats.add)
            case "xdg_wm_base":
                self.wm_base = self.conn.bind(announced)
                self.conn.on(self.wm_base, "ping", self.wm_base.pong)
            case "ivi_application":
                self.ivi = self.conn.bind(announced)
            case "wp_viewporter":
                self.viewporter = self.conn.bind(announced)
            case "wp_presentation":
                self.presentation = self.conn.bind(announced)
            case "zwp_linux_dmabuf_v1":
                self.dmabuf = self.conn.bind(announced)
                self.dmabuf_formats = DmabufFormats(self.conn, self.dmabuf, self._changed)
            case "zxdg_output_manager_v1":
                self.outputs.use_xdg_manager(self.conn.bind(announced))
            case "wl_output":
                self.outputs.add(announced)
            case "wl_seat":
                cursor = SeatCursor(self.conn, lambda: (self.compositor, self.shm))
                self.seats[announced.number] = SeatDevices(self.conn, announced, self._find, cursor)
                self._changed()
            case interface if interface in EXTENSIONS:
                self.extensions[interface] = self.conn.bind(announced)

    def on_removed(self, removed: Global) -> None:
        """Release an output or a seat that the compositor has removed."""
        if removed.interface == "wl_output":
            self.outputs.remove(removed)
        elif removed.interface == "wl_seat":
            self.seats.pop(removed.number).close()
            self._changed()

    @property
    def missing(self) -> str:
        """The names of the globals that displbe needs and the compositor does not offer, as text; empty: none."""
        required = (("wl_compositor", self.compositor), ("wl_shm", self.shm))
        return ", ".join(name for name, proxy in required if proxy is None)

    def uses_ivi(self, ivi_id: int | None) -> bool:
        """Return whether a surface with this ivi id becomes an ivi_surface. None: the surface has no ivi id."""
        return self.ivi is not None and ivi_id is not None and self._shell != "xdg"

    def leave(self, target: SeatTarget) -> None:
        """Take the focus of all seats from an output whose surface is about to be destroyed."""
        for seat in self.seats.values():
            seat.leave(target)

    def update_cursor(self, target: SeatTarget) -> None:
        """Show or hide the cursors of all seats over an output's surface."""
        for seat in self.seats.values():
            seat.update_cursor(target)
        self.conn.flush()

    def close(self) -> None:
        """Close the seats: the connection ends, and with it each focus."""
        for seat in self.seats.values():
            seat.close()
        self.seats.clear()
