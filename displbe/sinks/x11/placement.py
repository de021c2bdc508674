"""Where a window lies: as large as its guest's picture, full screen, or on one monitor.

A window manager of EWMH is asked for full screen on the monitor. Without one, the window has the monitor's area, which also tells a window
manager the monitor.
"""

from __future__ import annotations

from typing import Final

import xcffib.xproto as x

from .monitors import Monitor
from .server import Server
from .settings import X11Settings

__all__ = ["WindowPlacement"]

USER_PLACE: Final = 0x3
"""USPosition and USSize of WM_NORMAL_HINTS: the operator has chosen place and size."""
FIXED_SIZE: Final = 0x30
"""PMinSize and PMaxSize of WM_NORMAL_HINTS."""
REMOVE: Final = 0
ADD: Final = 1
"""What _NET_WM_STATE does (EWMH)."""
FROM_APPLICATION: Final = 1
"""The source of a request (EWMH)."""
_AREA: Final = x.ConfigWindow.X | x.ConfigWindow.Y | x.ConfigWindow.Width | x.ConfigWindow.Height


class WindowPlacement:
    """The place of one window. `monitor` is the name of the monitor that it fills; empty: it is an ordinary window.

    Methods raise xcffib.XcffibException when the connection is lost.
    """

    def __init__(self, server: Server, window: int, settings: X11Settings, monitor: str) -> None:
        self._server = server
        self._window = window
        self._settings = settings
        self._name = monitor
        self.picture = (0, 0)
        """The size of the guest's picture in pixels; that of the connector until there is one."""
        self._placed: Monitor | None = None
        """The monitor on which the window was placed last; None: it was placed as a window."""

    @property
    def _monitor(self) -> Monitor | None:
        return next((monitor for monitor in self._server.monitors if self._name and monitor.name == self._name), None)

    @property
    def complaint(self) -> str:
        """Why the window is not where the configuration wants it, and the way out; empty: it is."""
        if not self._name or self._monitor is not None:
            return ""
        names = ", ".join(monitor.name for monitor in self._server.monitors) or "none by name: it lacks RandR 1.5"
        return (
            f"the X server has no monitor {self._name} ({names}), so it is shown in a window; see xrandr --listmonitors"
        )

    def resize(self, picture: tuple[int, int]) -> None:
        """Ask for the size of the guest's picture, or of the monitor. The window manager decides."""
        self.picture = picture
        self._ask()

    def before_map(self) -> None:
        """Ask for full screen, if so configured. A window manager removes _NET_WM_STATE when a window is withdrawn (EWMH)."""
        if self._monitor is not None:
            self._ask()
        if self._settings.fullscreen or self._placed is not None:
            atoms = self._server.atoms
            state = [atoms["_NET_WM_STATE_FULLSCREEN"]]
            self._server.set_property(self._window, atoms["_NET_WM_STATE"], x.Atom.ATOM, state)

    def after_map(self) -> None:
        """Tell the window manager the monitor."""
        if self._placed is not None:
            number = self._placed.number
            words = (number, number, number, number, FROM_APPLICATION)
            self._server.send_message(self._window, self._server.atoms["_NET_WM_FULLSCREEN_MONITORS"], words)

    def follow(self, *, mapped: bool) -> None:
        """Follow the monitors: they have changed."""
        before = self._placed
        if self._monitor is None and before is None:
            return  # an ordinary window keeps the place that its user has given it
        if mapped and self._monitor is None and not self._settings.fullscreen:
            self._set_state(REMOVE)  # before the size, which window managers ignore while a window is full screen
        self._ask()
        if mapped and self._placed is not None:
            self._set_state(ADD)
            self.after_map()
        self._server.flush()

    def _set_state(self, action: int) -> None:
        atoms = self._server.atoms
        words = (action, atoms["_NET_WM_STATE_FULLSCREEN"], 0, FROM_APPLICATION)
        self._server.send_message(self._window, atoms["_NET_WM_STATE"], words)

    def _ask(self) -> None:
        core, monitor, picture = self._server.core, self._monitor, self.picture
        self._placed = monitor
        if monitor is not None:
            area = [monitor.x, monitor.y, monitor.width, monitor.height]
            self._set_hints([USER_PLACE, *area, *(0,) * 13])
            core.ConfigureWindow(self._window, _AREA, [area[0] & 0xFFFFFFFF, area[1] & 0xFFFFFFFF, *area[2:]])
            return
        if self._settings.scale == "none":
            self._set_hints([FIXED_SIZE, 0, 0, 0, 0, *picture, *picture, *(0,) * 9])
        core.ConfigureWindow(self._window, x.ConfigWindow.Width | x.ConfigWindow.Height, list(picture))

    def _set_hints(self, hints: list[int]) -> None:
        self._server.set_property(self._window, x.Atom.WM_NORMAL_HINTS, x.Atom.WM_SIZE_HINTS, hints)
