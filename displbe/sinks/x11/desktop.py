"""The desktop that the outputs of one X11 sink share."""

from __future__ import annotations

import xcffib

from displbe.sinks.flip import FlipClock
from displbe.sinks.seat import Seats

from .server import Server
from .settings import X11Settings

__all__ = ["Desktop"]


class Desktop:
    """The current X server, if there is one, and what all windows on it need. The sink sets `server`."""

    def __init__(self, settings: X11Settings) -> None:
        self.settings = settings
        self.server: Server | None = None
        """The connection; None: there is no X server, or none yet."""
        self.seats = Seats(self._settle)
        self.clock = FlipClock()

    async def _settle(self, domid: int, connector: str) -> bool:
        """Wait for two answers of the X server (Seats). All windows share its connection."""
        server = self.server
        if server is None:
            return False
        try:
            await server.round_trip()
            await server.round_trip()
        except xcffib.XcffibException:  # the connection is lost; Server.serve is about to report it
            return False
        return True
