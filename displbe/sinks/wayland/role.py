"""The role of a surface: an xdg_toplevel (desktops, Weston's desktop-shell and kiosk-shell) or an ivi_surface."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import ClassVar, Final

import msgspec

from .conn import Proxy, words
from .link import Link

__all__ = ["IviRole", "NoRole", "Role", "RoleOptions", "XdgRole", "choose_role", "fit"]

MAXIMIZED: Final = 1
FULLSCREEN: Final = 2
TILED: Final = frozenset({5, 6, 7, 8})
SUSPENDED: Final = 9
"""xdg_toplevel.state"""


class NoRole(Exception):
    """The compositor offers no shell for this surface; the text says why."""


class RoleOptions(msgspec.Struct, frozen=True):
    """How a surface is presented to the shell."""

    title: str
    app_id: str
    """Title and application id for xdg-shell."""
    ivi_id: int | None
    """The id for ivi-application; None: the connector has none."""
    scale: str
    """The setting `scale`: `fit`, `stretch` or `none`."""


def fit(width: int, height: int, into_width: int, into_height: int) -> tuple[int, int]:
    """Return the largest size of the same aspect ratio that fits, in pixels."""
    if into_width * height <= into_height * width:
        return into_width, max(1, height * into_width // width)
    return max(1, width * into_height // height), into_height


class Role(abc.ABC):
    """A surface's role. `configured` is called when the compositor has configured the surface, `closing` when the user closes it.

    `scalable`: the surface has a viewport, so that its size is free.
    """

    name: ClassVar[str]
    configured_first: ClassVar[bool]
    """Whether the surface may have a buffer only after the first configure event."""

    def __init__(self, link: Link, options: RoleOptions, scalable: bool, configured: Callable[[], None]) -> None:
        self.suspended = False
        """The compositor says that the surface is not visible."""
        self._conn = link.conn
        self._scalable = scalable
        self._scale = options.scale
        self._configured = configured
        self._asked = (0, 0)
        """The width and height that the compositor asks for; 0: any."""

    @abc.abstractmethod
    def begin(self, wl_output: Proxy | None) -> None:
        """Ask for the first configuration: full screen on this output; None: as a window."""

    @abc.abstractmethod
    def move(self, wl_output: Proxy | None) -> None:
        """Fill this output from now on. None: the output is gone, and the compositor chooses the place."""

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the surface for a picture of this size."""
        if not self._scalable or self._asked[0] <= 0 or self._asked[1] <= 0:
            return width, height
        return self._scaled_size(width, height)

    @abc.abstractmethod
    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the surface where the compositor asks for one."""

    @abc.abstractmethod
    def destroy(self) -> None:
        """Destroy the role's objects. The surface must be destroyed after them."""


class IviRole(Role):
    """An ivi_surface. The compositor's controller places it, and gives it exactly its size."""

    name = "ivi-application"
    configured_first = False

    def __init__(
        self,
        link: Link,
        surface: Proxy,
        options: RoleOptions,
        scalable: bool,
        configured: Callable[[], None],
        closing: Callable[[], None],
    ) -> None:
        super().__init__(link, options, scalable, configured)
        self._ivi = self._conn.keep(link.ivi.surface_create(options.ivi_id or 0, surface))
        self._conn.on(self._ivi, "configure", self._on_configure)

    def _on_configure(self, width: int, height: int) -> None:
        self._asked = (width, height)
        self._configured()

    def begin(self, wl_output: Proxy | None) -> None:
        pass

    def move(self, wl_output: Proxy | None) -> None:
        pass

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        return self._asked

    def destroy(self) -> None:
        self._conn.destroy(self._ivi)


class XdgRole(Role):
    """An xdg_toplevel."""

    name = "xdg-shell"
    configured_first = True

    def __init__(
        self,
        link: Link,
        surface: Proxy,
        options: RoleOptions,
        scalable: bool,
        configured: Callable[[], None],
        closing: Callable[[], None],
    ) -> None:
        super().__init__(link, options, scalable, configured)
        self._surface = surface
        self._states: frozenset[int] = frozenset()
        self._pending: tuple[tuple[int, int], frozenset[int]] = ((0, 0), frozenset())
        """Size and states of xdg_toplevel.configure. They take effect with the xdg_surface.configure that follows."""
        self._wl_output: Proxy | None = None
        conn = self._conn
        self._xdg = conn.keep(link.wm_base.get_xdg_surface(surface))
        conn.on(self._xdg, "configure", self._on_configure)
        self._toplevel = conn.keep(self._xdg.get_toplevel())
        conn.on(self._toplevel, "configure", self._on_toplevel_configure)
        conn.on(self._toplevel, "close", closing)
        self._toplevel.set_title(options.title)
        self._toplevel.set_app_id(options.app_id)

    def begin(self, wl_output: Proxy | None) -> None:
        self.move(wl_output)
        self._surface.commit()

    def move(self, wl_output: Proxy | None) -> None:
        if wl_output is not None and wl_output is not self._wl_output and self._scalable:
            self._toplevel.set_fullscreen(wl_output)
        self._wl_output = wl_output

    def _on_toplevel_configure(self, width: int, height: int, states: bytes) -> None:
        self._pending = ((width, height), frozenset(words(states)))

    def _on_configure(self, serial: int) -> None:
        self._asked, self._states = self._pending
        self.suspended = SUSPENDED in self._states
        self._xdg.ack_configure(serial)
        self._configured()

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        # A maximised or tiled surface must have exactly the size asked for, or the compositor ends the connection. A full-screen
        # surface may be smaller; the compositor centres it.
        asked_width, asked_height = self._asked
        if FULLSCREEN in self._states:
            if self._scale == "none" and width <= asked_width and height <= asked_height:
                return width, height
        elif MAXIMIZED in self._states or self._states & TILED:
            return self._asked
        if self._scale == "stretch":
            return self._asked
        return fit(width, height, asked_width, asked_height)

    def destroy(self) -> None:
        self._conn.destroy(self._toplevel, self._xdg)


def choose_role(link: Link, ivi_id: int | None) -> type[IviRole | XdgRole]:
    """Return the role of a surface with this id for ivi-application; None: it has none. Raises NoRole."""
    if link.uses_ivi(ivi_id):
        return IviRole
    if link.wm_base is not None:
        return XdgRole
    if link.ivi is not None:
        raise NoRole("the compositor offers only ivi-application, and this connector has no ivi id")
    raise NoRole("the compositor offers neither xdg-shell nor ivi-application")
