"""The X server's screen saver and DPMS timers, which windows may keep from ending (MIT-SCREEN-SAVER 1.1)."""

from __future__ import annotations

from typing import Any

import xcffib.screensaver

__all__ = ["ScreenSaver"]


class ScreenSaver:
    """The screen saver of one connection. `connection` is None if the server does not have the extension in version 1.1.

    The server ends the suspension when the connection ends. Methods raise xcffib.XcffibException when the connection is lost.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._holders: set[int] = set()
        """The windows that keep the screen on."""

    @classmethod
    def find(cls, connection: Any) -> ScreenSaver:
        """Return the screen saver of a server that has MIT-SCREEN-SAVER. It blocks until the server has answered."""
        version = connection(xcffib.screensaver.key).QueryVersion(1, 1).reply()
        return cls(connection if (version.server_major_version, version.server_minor_version) >= (1, 1) else None)

    @property
    def is_offered(self) -> bool:
        """Whether the server can be asked to keep its screen on."""
        return self._connection is not None

    def keep_on(self, window: int, active: bool) -> None:
        """Keep the screen on for a window, or no longer. Nothing happens if the server cannot be asked."""
        before = bool(self._holders)
        (self._holders.add if active else self._holders.discard)(window)
        # ScreenSaverSuspend counts its calls: it is called only when the first window wants it, and when none does any more.
        if self._connection is not None and bool(self._holders) != before:
            self._connection(xcffib.screensaver.key).Suspend(int(active))
