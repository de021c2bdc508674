"""systemd's notifications (sd_notify(3)): ready, alive, stopping. Without systemd they go nowhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["Health"]


class Health:
    """The service manager's ear, from the environment it gave us."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.interval = int(microseconds) / 2e6 if microseconds.isdigit() and mine else None
        """Seconds between two signs of life: half of what systemd waits; None when it does not watch."""

    @property
    def listening(self) -> bool:
        """Whether a manager is there."""
        return bool(self._address)

    def tell(self, *lines: str) -> None:
        """Send lines such as READY=1. A manager that does not listen is no error."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            pass
