"""What one connection's compositor offers, gathered while it is announced."""

from __future__ import annotations

from collections.abc import Callable

from .conn import Connection, Global, Proxy
from .feedback import DmabufFormats
from .screens import Screens
from .seat import SeatDevices, Surface

__all__ = ["Session"]


class Session:
    """The globals that are used. `changed` is called when there are other outputs or formats; `find` gives the surface of a proxy."""

    def __init__(
        self, conn: Connection, shell: str, changed: Callable[[], None], find: Callable[[Proxy], Surface | None]
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
        self.shm_formats: set[int] = set()
        self.screens = Screens(conn, changed)
        self.seats: dict[int, SeatDevices] = {}
        self._shell = shell
        self._changed = changed
        self._find = find

    def appeared(self, there: Global) -> None:
        """A global is announced."""
        match there.interface:
            case "wl_compositor":
                self.compositor = self.conn.bind(there)
            case "wl_shm":
                self.shm = self.conn.bind(there)
                self.conn.on(self.shm, "format", self.shm_formats.add)
            case "xdg_wm_base":
                self.wm_base = self.conn.bind(there)
                self.conn.on(self.wm_base, "ping", self.wm_base.pong)
            case "ivi_application":
                self.ivi = self.conn.bind(there)
            case "wp_viewporter":
                self.viewporter = self.conn.bind(there)
            case "wp_presentation":
                self.presentation = self.conn.bind(there)
            case "zwp_linux_dmabuf_v1":
                self.dmabuf = self.conn.bind(there)
                self.dmabuf_formats = DmabufFormats(self.conn, self.dmabuf, self._changed)
            case "zxdg_output_manager_v1":
                self.screens.name_with(self.conn.bind(there))
            case "wl_output":
                self.screens.add(there)
            case "wl_seat":
                self.seats[there.number] = SeatDevices(self.conn, there, self._find)

    def disappeared(self, there: Global) -> None:
        """A global has gone."""
        if there.interface == "wl_output":
            self.screens.remove(there)
        elif there.interface == "wl_seat":
            self.seats.pop(there.number).close()

    @property
    def missing(self) -> str:
        """What nothing can be done without, and is not there."""
        return ", ".join(
            name for name, proxy in (("wl_compositor", self.compositor), ("wl_shm", self.shm)) if proxy is None
        )

    def uses_ivi(self, number: int | None) -> bool:
        """Whether a surface that may have this id becomes an ivi_surface."""
        return self.ivi is not None and number is not None and self._shell != "xdg"

    def forget(self, surface: Surface) -> None:
        """A surface goes."""
        for seat in self.seats.values():
            seat.forget(surface)

    def close(self) -> None:
        """The connection goes: what had the focus has it no more."""
        for seat in self.seats.values():
            seat.close()
        self.seats.clear()
