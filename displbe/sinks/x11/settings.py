"""`[x11]` of the configuration."""

from __future__ import annotations

import re
from typing import Final, Literal

from displbe.settings import Table

__all__ = ["X11Settings"]

_DISPLAY: Final = re.compile(r"[!-~]*:\d{1,5}(\.\d{1,5})?|(unix:)?/[!-~]+", re.ASCII)
"""[HOST]:NUMBER[.SCREEN], or the path of a socket (XOpenDisplay(3), libxcb's xcb_parse_display)."""


class X11Settings(Table, frozen=True):
    """`[x11]`"""

    display: str = ""
    """The X server, as in DISPLAY; empty: the one that the environment names."""
    scale: Literal["fit", "stretch", "none"] = "fit"
    """How a picture is scaled to its window: with its aspect ratio, to fill the window, or not at all."""
    fullscreen: bool = False
    """Whether windows ask the window manager for full screen."""
    on_close: Literal["iconify", "detach", "ignore"] = "iconify"
    """The reaction when the user closes a window. `detach`: there is no window until the operator opens it again."""
    outputs: dict[str, str] = {}
    """The monitors that connectors fill, by the connectors' names."""
    inhibit_shortcuts: bool = False
    """Whether a guest gets the keys of the window manager's shortcuts while its window has the focus."""
    inhibit_idle: bool = False
    """Whether the server's screen stays on while a guest's window is on it."""
    cursor: Literal["auto", "show", "hide"] = "auto"
    """Whether the server's cursor is shown over a guest's picture. `auto`: if the guest does not take the pointer."""
    refresh: float = 60.0
    """Refreshes per second, 1 to 1000: flips end at this rate."""

    def __post_init__(self) -> None:
        if not 1 <= self.refresh <= 1000:
            raise ValueError("refresh is a number of refreshes per second, 1 to 1000")
        if self.display and not _DISPLAY.fullmatch(self.display):
            raise ValueError("display must be like $DISPLAY, such as :0, or the path of the server's socket")
