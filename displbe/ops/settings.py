"""`[log]`, `[control]` and `[metrics]` of the configuration."""

from __future__ import annotations

from typing import Literal

from displbe.settings import Table

__all__ = ["ControlSettings", "LogSettings", "MetricsSettings"]


class LogSettings(Table, frozen=True):
    """`[log]`"""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    traces: str = "auto"
    """The directory for traces of devices that were shut off; `auto`: the service manager's log directory; empty: none."""


class ControlSettings(Table, frozen=True):
    """`[control]`"""

    socket: str = "/run/displbe/control"
    """The path of the control socket; empty: no socket."""


class MetricsSettings(Table, frozen=True):
    """`[metrics]`"""

    textfile: str = ""
    """The path of a file, NAME.prom, for node_exporter; empty: no file."""
    interval: float = 15.0
    """Seconds between two versions of the file."""
    socket: str = ""
    """The path of a UNIX socket that speaks HTTP; empty: no socket."""
    listen: str = ""
    """HOST:PORT; empty: no TCP."""

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= 3600:
            raise ValueError("interval is a number of seconds, 1 to 3600")
        host, colon, port = self.listen.rpartition(":")
        if self.listen and not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError("listen is HOST:PORT")
        try:
            host.strip("[]").encode("idna")
        except UnicodeError as error:
            raise ValueError(f"listen is HOST:PORT, and {host} cannot be a host: {error}") from error
