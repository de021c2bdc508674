"""systemd's notification socket (sd_notify(3)): READY=1, WATCHDOG=1, STATUS=…, STOPPING=1. Without systemd nothing is sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

__all__ = ["ServiceManager"]


class ServiceManager:
    """The service manager that started this process, found from the environment variables that it set."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_interval = int(microseconds) / 2e6 if microseconds.isdigit() and is_for_us else None
        """Seconds between two WATCHDOG=1: half of systemd's timeout (sd_watchdog_enabled(3)). None: there is no watchdog."""

    @property
    def is_present(self) -> bool:
        """Whether there is a service manager to notify."""
        return bool(self._address)

    def notify(self, *lines: str) -> None:
        """Send lines such as READY=1. Errors are ignored."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
                channel.sendto("\n".join(lines).encode(), self._address)
        except OSError:
            pass
