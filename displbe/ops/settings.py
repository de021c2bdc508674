"""`[log]`, `[control]` and `[metrics]` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from displbe.settings import Table

__all__ = ["ControlSettings", "LogSettings", "MetricsSettings"]


class LogSettings(Table, frozen=True):
    """The table `[log]`."""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    traces: str = "auto"
    """The directory for traces of devices that were shut off; `auto`: `$STATE_DIRECTORY/traces` (systemd.exec(5)); empty: none."""


class ControlSettings(Table, frozen=True):
    """The table `[control]`."""

    socket: str = "/run/displbe/control"
    """The path of the control socket; empty: no socket."""


class MetricsSettings(Table, frozen=True):
    """The table `[metrics]`."""

    textfile: str = ""
    """The path of a file for node_exporter's textfile collector, NAME.prom; empty: no file."""
    interval: float = 15.0
    """Seconds between two writes of the file."""
    socket: str = ""
    """The path of a UNIX socket that serves HTTP; empty: no socket."""
    listen: str = ""
    """HOST:PORT for HTTP over TCP; empty: no TCP."""

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= 3600:
            raise ValueError("interval must be a number of seconds, 1 to 3600")
        if self.textfile and not Path(self.textfile).name:
            raise ValueError("textfile must be the path of a file, NAME.prom")
        host, colon, port = self.listen.rpartition(":")
        host = host.strip("[]")
        number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
        if self.listen and not (host and colon and 0 < number < 65536):
            raise ValueError("listen must be HOST:PORT")
        try:
            host.encode("idna")
        except UnicodeError as error:
            raise ValueError(f"listen must be HOST:PORT, and {host} is not a host name: {error}") from error
