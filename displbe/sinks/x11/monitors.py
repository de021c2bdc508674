"""The monitors of an X server (RandR 1.5), by name."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import xcffib
import xcffib.randr

__all__ = ["FOLLOWED", "Monitor", "read_monitors"]

FOLLOWED: Final = (
    xcffib.randr.NotifyMask.ScreenChange | xcffib.randr.NotifyMask.CrtcChange | xcffib.randr.NotifyMask.OutputChange
)
"""The events after which there may be other monitors."""


class Monitor(msgspec.Struct, frozen=True):
    """A monitor, or a part of one that the user has defined with `xrandr --setmonitor`."""

    name: str
    number: int
    """Its place in RandR's list, which is also Xinerama's: window managers number monitors so (_NET_WM_FULLSCREEN_MONITORS)."""
    x: int
    y: int
    width: int
    height: int
    """Its area of the screen, in pixels."""


def read_monitors(connection: Any, root: int, *, follow: bool = False) -> tuple[Monitor, ...]:
    """Return the monitors that are on; none if the server has no RandR 1.5. It blocks until the server has answered.

    `follow`: let the server send events when they change. (It sends none when the user only defines a monitor, until another change.)
    Raises xcffib.XcffibException. The server has the extension RANDR.
    """
    randr = connection(xcffib.randr.key)
    version = randr.QueryVersion(1, 5).reply()
    if (version.major_version, version.minor_version) < (1, 5):
        return ()
    if follow:
        randr.SelectInput(root, FOLLOWED)
    infos = randr.GetMonitors(root, True).reply().monitors
    cookies = [connection.core.GetAtomName(info.name) for info in infos]
    names = [cookie.reply().name.to_string() for cookie in cookies]
    return tuple(
        Monitor(name, number, info.x, info.y, info.width, info.height)
        for number, (name, info) in enumerate(zip(names, infos, strict=True))
        if info.width and info.height
    )
