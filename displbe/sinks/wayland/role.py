"""The role of a surface: an xdg_toplevel (desktops, Weston's desktop-shell and kiosk-shell) or an ivi_surface."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Final

import msgspec

from .conn import Proxy, words
from .link import Link
from .sizes import ONE, fit_units, units_of

__all__ = ["DECORATIONS", "IviRole", "NoRole", "Role", "RoleOptions", "XdgRole", "choose_role"]

MAXIMIZED: Final = 1
FULLSCREEN: Final = 2
TILED: Final = frozenset({5, 6, 7, 8})
SUSPENDED: Final = 9
"""xdg_toplevel.state"""
DECORATIONS: Final = "zxdg_decoration_manager_v1"
CLIENT_SIDE: Final = 1
SERVER_SIDE: Final = 2
"""zxdg_toplevel_decoration_v1.mode. displbe draws no decorations: a window that has to draw its own has none."""


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
    pixels: str
    """The setting `pixels`: `physical` or `logical`."""
    decorations: str
    """The setting `decorations`: `auto`, `server` or `none`."""


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
        self.preferred_scale = ONE
        """Pixels of the monitor for each unit of the surface's size, in 120ths; 120 also where the compositor does not say it."""
        self._conn = link.conn
        self._scalable = scalable
        self._options = options
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
        if not self._scalable:
            return width, height
        if self._asked[0] <= 0 or self._asked[1] <= 0:
            return self._natural_size(width, height)
        return self._scaled_size(width, height)

    def _natural_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of the surface for a picture that displbe does not scale."""
        return (
            units_of((width, height), self.preferred_scale) if self._options.pixels == "physical" else (width, height)
        )

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
        self._chosen: deque[tuple[int, int]] = deque(maxlen=4)
        """The newest sizes of pictures that are not scaled. A compositor that asks a window for one of them repeats what it has seen: the
        window then follows a new scale, or the guest's new resolution.
        """
        conn = self._conn
        self._xdg = conn.keep(link.wm_base.get_xdg_surface(surface))
        conn.on(self._xdg, "configure", self._on_configure)
        self._toplevel = conn.keep(self._xdg.get_toplevel())
        conn.on(self._toplevel, "configure", self._on_toplevel_configure)
        conn.on(self._toplevel, "close", closing)
        self._toplevel.set_title(options.title)
        self._toplevel.set_app_id(options.app_id)
        self._decoration: Proxy = None
        manager = link.extensions.get(DECORATIONS)
        if manager is not None:
            self._decoration = conn.keep(manager.get_toplevel_decoration(self._toplevel))
            self._decoration.set_mode(CLIENT_SIDE if options.decorations == "none" else SERVER_SIDE)

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

    def _natural_size(self, width: int, height: int) -> tuple[int, int]:
        size = super()._natural_size(width, height)
        if size not in self._chosen:
            self._chosen.append(size)
        return size

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        # A maximised or tiled surface must have exactly the size asked for, or the compositor ends the connection. A full-screen
        # surface may be smaller; the compositor centres it.
        asked_width, asked_height = self._asked
        natural = self._natural_size(width, height)
        if FULLSCREEN in self._states:
            if self._options.scale == "none" and natural[0] <= asked_width and natural[1] <= asked_height:
                return natural
        elif MAXIMIZED in self._states or self._states & TILED:
            return self._asked
        elif self._asked in self._chosen:
            return natural
        if self._options.scale == "stretch":
            return self._asked
        return fit_units((width, height), self._asked, self.preferred_scale)

    def destroy(self) -> None:
        # The protocol: the decoration "must be destroyed before its xdg_toplevel".
        self._conn.destroy(self._decoration, self._toplevel, self._xdg)


def choose_role(link: Link, ivi_id: int | None) -> type[IviRole | XdgRole]:
    """Return the role of a surface with this id for ivi-application; None: it has none. Raises NoRole."""
    if link.uses_ivi(ivi_id):
        return IviRole
    if link.wm_base is not None:
        return XdgRole
    if link.ivi is not None:
        raise NoRole("the compositor offers only ivi-application, and this connector has no ivi id")
    raise NoRole("the compositor offers neither xdg-shell nor ivi-application")
