"""The window of one connector of a guest's device: its surface, which is black while the guest shows nothing.

The window lives as long as the device, which the toolstack creates and removes, and over the guest's reboots (sinks.window_queue).
Compositors focus a window that they map; therefore nothing that the guest does opens or closes it. The user may close the window; the
operator opens it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import structlog

from displbe.ops.text import escape
from displbe.sinks.base import DeviceConnector, OutputUnavailable
from displbe.sinks.flip import Flip
from displbe.sinks.seat import SeatEvent
from displbe.wire.xs import parse_number

from .extensions import SurfaceOptions
from .guest import WaylandGuest
from .role import NoRole, RoleOptions
from .surface import SurfaceState, WaylandSurface
from .sync_gate import SyncGate
from .wl_outputs import DEFAULT_PERIOD

__all__ = ["Contents", "WaylandWindow", "ivi_id"]

LATE: Final = 0.2
"""Seconds after which displbe ends a flip that the compositor does not report on; the surface counts as hidden from then on."""

WAY_OUT: Final = (
    "show it on the desktop, or run displbectl reopen (it may be minimised, covered, or without a place in ivi-shell)"
)
"""How the user makes a window visible."""


class Contents(Protocol):
    """The frames that a connected guest shows in a window."""

    @property
    def is_on(self) -> bool:
        """Whether the guest has its screen on."""

    def show(self) -> bool:
        """Give the surface the guest's current frame, if there is one and the surface may be given it."""

    flipped: Callable[[int], None]
    """Called with the token of a flip that has ended."""

    def on_changed(self) -> None:
        """Take note that the guest's frames have become visible, or are not visible any more."""


class WaylandWindow:
    """A window. `guest` is its guest with the connection; the window is open while there is a compositor."""

    def __init__(self, guest: WaylandGuest, connector: DeviceConnector) -> None:
        self.connector = connector
        self.refusal = ""
        """Why the compositor has no place for the surface; empty: it has."""
        self.flip = Flip(guest.clock, self._on_flipped, late=LATE, on_late=self._on_late)
        """The flip of the connected guest. Its serial numbers go on over the guest's connections."""
        self.surface = WaylandSurface(
            self.flip,
            SyncGate(self._show),
            (connector.width, connector.height),
            self._on_configured,
            self._on_closing,
            self._on_changed,
        )
        self.seat = guest.seats.window(connector.claimant.domid, connector.name)
        self.seat.on_change = self._on_seat_change
        self._guest = guest
        self._contents: Contents | None = None
        """The frames of the connected guest; None: no guest is connected to this window."""
        self._log = self._bind_log()

    def _bind_log(self) -> Any:
        connector = self.connector
        return structlog.get_logger("displbe.wayland").bind(connector=connector.name, domid=connector.claimant.domid)

    def move(self, connector: DeviceConnector) -> None:
        """Belong to this connector, which the toolstack has created after the window's own one was gone: the guest has rebooted. The window
        stays where it is, or closed if its user has closed it, and is black in the new connector's size.
        """
        self.connector = connector
        self._log = self._bind_log()
        self.seat.moved(connector.claimant.domid, connector.name)
        self.surface.resize((connector.width, connector.height))

    # The guest's connection

    def attach(self, contents: Contents) -> None:
        """Show these frames: the guest has connected."""
        self._contents = contents
        self.seat.attach()
        self.follow_guest()

    def detach(self) -> None:
        """Stay black: the guest's connection has ended."""
        self._contents = None
        self.seat.detach()
        self.follow_guest()

    # The compositor, and the operator

    def connected(self) -> None:
        """Open the surface: there is a compositor. A window that its user has closed stays closed."""
        self.outputs_changed()
        self._open()
        self._show()

    def disconnected(self) -> None:
        """Forget the surface: the connection is gone. The clock ends flips until there is a compositor again."""
        self.surface.lost()
        self.flip.period = DEFAULT_PERIOD
        self.flip.end_at_refresh()
        self._on_changed()

    def reopen(self) -> None:
        """Open the window again if its user has closed it, or if the compositor does not show it: no request makes it visible that is
        minimised, or that ivi-shell's controller has ignored. Raises OutputUnavailable.
        """
        if self.surface.state is SurfaceState.DISMISSED or not self.surface.is_visible:
            self._close_surface(SurfaceState.CLOSED)
        self._open()
        self._show()
        if self.refusal:
            raise OutputUnavailable(self.refusal)

    def close(self) -> None:
        """Close the window: the device is gone. The guest's output has been released."""
        if self._guest.link is not None:
            self._guest.link.leave(self)
        self.seat.detach()
        self.seat.close()
        self.surface.close(SurfaceState.CLOSED)

    def outputs_changed(self) -> None:
        """Follow the compositor's outputs: their rate, and the one that this connector fills."""
        link = self._guest.link
        if link is not None:
            self.flip.period = link.outputs.period
            self.surface.move(link.outputs.find(self._wl_output_name))
            self.follow_guest()

    @property
    def _wl_output_name(self) -> str:
        """The name of the compositor's output that this connector fills."""
        name = self.connector.name
        return self._guest.settings.outputs.get(name, name)

    def _open(self) -> None:
        """Open the surface, unless it is open, its user has closed it, or there is no compositor."""
        link = self._guest.link
        if link is None or self.surface.state is not SurfaceState.CLOSED:
            return
        connector, settings = self.connector, self._guest.settings
        claimant = connector.claimant
        names = {
            "guest": _printable(claimant.name) or f"domain {claimant.domid}",
            "connector": _printable(connector.name),
        }
        options = RoleOptions(
            settings.title.format(**names),
            settings.app_id.format(**names),
            ivi_id(connector.name, settings.surfaces),
            settings.scale,
            settings.pixels,
            settings.decorations,
        )
        more = SurfaceOptions(options.title, settings.inhibit_idle, settings.inhibit_shortcuts)
        try:
            self.surface.open(link, options, more, link.outputs.find(self._wl_output_name))
        except NoRole as error:
            self.refusal = str(error)
            self._log.warning("window not opened", reason=self.refusal)
        else:
            self.refusal = ""
        self.follow_guest()

    def darkness(self) -> str:
        """Return why no frame of a guest can be seen in the window, and the way out; empty: a frame of the guest is on the screen."""
        if self._guest.link is None:
            return "there is no compositor: the window opens when it is back"
        match self.surface.state:
            case SurfaceState.CLOSED:
                return self.refusal or "the window is closed"
            case SurfaceState.DISMISSED:
                claimant = self.connector.claimant
                name = escape(claimant.name) or str(claimant.domid)
                return f"the user has closed the window: displbectl reopen {name} opens it again"
            case SurfaceState.CONFIGURING:
                return "the compositor has not configured the window yet"
            case SurfaceState.SUSPENDED:
                return f"the compositor says that the window cannot be seen: {WAY_OUT}"
            case SurfaceState.HIDDEN:
                return f"the compositor does not show the window: {WAY_OUT}"
        return "" if self.surface.is_presented else f"the compositor has not shown the newest frame: {WAY_OUT}"

    # The surface's events

    def _show(self) -> None:
        """Show the guest's frame, or black."""
        if self.surface.is_ready and self.surface.needs_frame():
            self._fill()
        elif self._contents is not None:
            self._contents.show()

    def _fill(self) -> None:
        """Give a surface that needs a frame the guest's frame, or the black one."""
        surface = self.surface
        if surface.attached is None:
            surface.blacken()
        if self._contents is not None:
            self._contents.show()

    def _on_configured(self) -> None:
        if self.surface.needs_frame():
            self._fill()
        else:
            self.surface.acknowledge()
        self._on_changed()

    def _on_closing(self) -> None:
        """The user closes the window."""
        policy = self._guest.settings.on_close
        self._log.info("window closed by its user", policy=policy)
        if policy == "detach":
            self._close_surface(SurfaceState.DISMISSED)

    def _close_surface(self, state: SurfaceState) -> None:
        """Take the window off the desktop. `state` says whether it may be opened again."""
        if self._guest.link is not None:
            self._guest.link.leave(self)
        self.surface.close(state)
        self.flip.end_at_refresh()
        self._on_changed()

    def _on_changed(self) -> None:
        if self._contents is not None:
            self._contents.on_changed()

    def _on_flipped(self, token: int) -> None:
        if self._contents is not None:
            self._contents.flipped(token)

    def _on_late(self) -> None:
        self.surface.on_late()

    # Seats

    @property
    def size(self) -> tuple[int, int]:
        """The surface's size, in its own coordinates."""
        return self.surface.size

    def tell(self, event: SeatEvent) -> None:
        """Pass an event of a seat to the guest."""
        self.seat.tell(event)
        if self.surface.extensions is not None:
            self.surface.extensions.handle(event)

    @property
    def draws_cursor(self) -> bool:
        """Whether the guest draws a cursor of its own over the surface. It draws nothing while its screen is off."""
        policy = self._guest.settings.cursor
        return self._is_on and (self.seat.takes_pointer if policy == "auto" else policy == "hide")

    def _on_seat_change(self) -> None:
        if self._guest.link is not None:
            self._guest.link.tell_locks(self)
        self.follow_guest()

    @property
    def _is_on(self) -> bool:
        return self._contents is not None and self._contents.is_on

    def follow_guest(self) -> None:
        """Follow the guest: its screen is on or off, and it takes pointer and keyboard or not. Follow the compositor's seats."""
        link, extensions = self._guest.link, self.surface.extensions
        if extensions is not None:
            extensions.inhibit_idle(self._is_on)
            extensions.inhibit_shortcuts(self.seat.takes_keyboard)
        if link is not None:
            link.update_cursor(self)


def ivi_id(name: str, surfaces: Mapping[str, int]) -> int | None:
    """Return the ivi id (32 bits) of a connector's surface: the one in [wayland.surfaces], else the name if it is a number; None: none."""
    if name in surfaces:
        return surfaces[name]
    return parse_number(name.encode())


def _printable(text: str) -> str:
    """Return a name for a title: no control characters, and at most 64 characters."""
    return "".join(character if character.isprintable() else "?" for character in text)[:64]
