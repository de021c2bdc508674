"""The objects that extend one wl_surface by optional protocols: its viewport, its scale, and its inhibitors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from displbe.sinks.base import Part
from displbe.sinks.seat import SeatEvent

from .conn import Proxy
from .inhibitors import IDLE_MANAGER, SHORTCUTS_MANAGER, IdleInhibitor, ShortcutsInhibitors
from .link import Link
from .role import DECORATIONS
from .settings import WaylandSettings

__all__ = ["SurfaceExtensions", "SurfaceOptions", "without_effect"]

FRACTIONAL_SCALE: Final = "wp_fractional_scale_manager_v1"
MOST_SCALE: Final = 120 * 64
"""The largest scale that is believed, in 120ths."""


class SurfaceOptions(msgspec.Struct, frozen=True):
    """What a surface asks for, besides its role."""

    window: str
    """The window's name for the log."""
    inhibit_idle: bool
    inhibit_shortcuts: bool
    """The settings of these names."""


class _Viewport:
    """Crops and scales the buffers of a surface (wp_viewport); sends only what changes."""

    def __init__(self, link: Link, surface: Proxy) -> None:
        self.proxy = link.conn.keep(link.viewporter.get_viewport(surface))
        self._placed: tuple[Part | None, tuple[int, int]] | None = None

    def place(self, source: Part | None, natural: tuple[int, int], size: tuple[int, int]) -> None:
        """Show this part of the buffer (None: all of it) in this size. `natural` is the part's size in pixels."""
        destination = (-1, -1) if size == natural else size
        if (source, destination) == self._placed:
            return
        self._placed = (source, destination)
        if source is None:
            self.proxy.set_source(-1, -1, -1, -1)
        else:
            self.proxy.set_source(source.x, source.y, source.width, source.height)
        self.proxy.set_destination(*destination)


class SurfaceExtensions:
    """The optional objects of one wl_surface. Those that the compositor does not offer are missing, and their methods do nothing.

    `on_scale` is called with the surface's preferred scale in 120ths, when the compositor tells it.
    """

    def __init__(self, link: Link, surface: Proxy, options: SurfaceOptions, on_scale: Callable[[int], None]) -> None:
        self._conn = link.conn
        self._viewport = _Viewport(link, surface) if link.viewporter is not None else None
        self._idle = IdleInhibitor(link, surface) if options.inhibit_idle else None
        self._shortcuts = ShortcutsInhibitors(link, surface, options.window) if options.inhibit_shortcuts else None
        self._scale: Proxy = None
        manager = link.extensions.get(FRACTIONAL_SCALE)
        if manager is not None and self._viewport is not None:  # without a viewport, nothing could be done about it
            self._scale = self._conn.keep(manager.get_fractional_scale(surface))
            self._conn.on(
                self._scale, "preferred_scale", lambda scale: on_scale(scale) if 1 <= scale <= MOST_SCALE else None
            )

    @property
    def scalable(self) -> bool:
        """Whether the surface's size is free, whatever its buffer's."""
        return self._viewport is not None

    def place(self, source: Part | None, natural: tuple[int, int], size: tuple[int, int]) -> None:
        """Show this part of the buffer (None: all of it) in this size. `natural` is the part's size in pixels."""
        if self._viewport is not None:
            self._viewport.place(source, natural, size)

    def inhibit_idle(self, active: bool) -> None:
        """Keep the screens on, or allow them to sleep, if the configuration says so."""
        if self._idle is not None:
            self._idle.set(active)

    def inhibit_shortcuts(self, active: bool) -> None:
        """Follow the compositor's seats. `active`: the guest takes the keyboard; its surface asks for the shortcuts, if so configured."""
        if self._shortcuts is not None:
            self._shortcuts.set(active)

    def handle(self, event: SeatEvent) -> None:
        """Handle an event of a seat for the surface: shortcuts follow the keyboard."""
        if self._shortcuts is not None:
            self._shortcuts.handle(event)

    def close(self) -> None:
        """Destroy the objects: the surface is about to be destroyed."""
        self.inhibit_idle(False)
        if self._shortcuts is not None:
            self._shortcuts.close()
        self._conn.destroy(self._scale, self._viewport.proxy if self._viewport is not None else None)


def without_effect(link: Link, settings: WaylandSettings) -> dict[str, str]:
    """Return the options that the compositor does not support, each with what follows, and the way out."""
    other = "use a compositor that offers it, or remove the option"
    options = (
        ("inhibit-shortcuts", settings.inhibit_shortcuts, SHORTCUTS_MANAGER, "the compositor keeps its shortcuts"),
        ("inhibit-idle", settings.inhibit_idle, IDLE_MANAGER, "the screen may go off while a guest is watched"),
        ("decorations", settings.decorations == "server", DECORATIONS, "windows have no title bars"),
    )
    return {
        name: f"the compositor does not offer {interface}, so {follows}: {other}"
        for name, wanted, interface, follows in options
        if wanted and interface not in link.extensions
    }
