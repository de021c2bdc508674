"""The configuration: a TOML file, checked as a whole before anything starts. configs/displbe.toml explains each key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits

__all__ = [
    "RELOADABLE",
    "ConfigError",
    "ControlSettings",
    "DrmSettings",
    "HeadlessSettings",
    "InputSettings",
    "LogSettings",
    "MetricsSettings",
    "Settings",
    "WaylandSettings",
    "X11Settings",
    "XenSettings",
    "differences",
    "load",
]


RELOADABLE: Final = {
    "log.level": "at once",
    "limits.": "for guests that come later",
    "guest.": "from a guest's next connection on (screenshot at once)",
    "input.focus": "at once",
}
"""What `differences` calls keys that can be changed without a restart, and from when on they hold."""


class ConfigError(Exception):
    """The configuration is wrong; the text names the file, the key and what is wrong."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class LogSettings(_Table, frozen=True):
    """`[log]`"""

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"
    traces: str = "auto"


class XenSettings(_Table, frozen=True):
    """`[xen]`"""

    store: str = ""
    """xenstored's socket or the xenbus device; empty: the one that is there."""
    maptrack: int = 262144
    """Pages that this domain can map of others (Xen's gnttab_max_maptrack_frames, 1024 by default, times 256)."""


class InputSettings(_Table, frozen=True):
    """`[input]`"""

    devices: list[str] = []
    grab: bool = True
    focus: str = ""
    repeat_delay: float = 0.5
    repeat_rate: float = 25.0

    def __post_init__(self) -> None:
        if not 0 < self.repeat_delay <= 10:
            raise ValueError("repeat-delay is a number of seconds, up to 10")
        if not 0 <= self.repeat_rate <= 100:
            raise ValueError("repeat-rate is a number of repetitions per second, 0 (none) to 100")


class ControlSettings(_Table, frozen=True):
    """`[control]`"""

    socket: str = "/run/displbe/control"


class MetricsSettings(_Table, frozen=True):
    """`[metrics]`"""

    textfile: str = ""
    interval: float = 15.0
    socket: str = ""
    listen: str = ""

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


class HeadlessSettings(_Table, frozen=True):
    """`[headless]`"""

    refresh: float = 60.0
    directory: str = ""
    outputs: list[str] = []

    def __post_init__(self) -> None:
        if not 1 <= self.refresh <= 1000:
            raise ValueError("refresh is a number of refreshes per second, 1 to 1000")


class DrmSettings(_Table, frozen=True):
    """`[drm]`"""

    device: str = "auto"
    zero_copy: Literal["auto", "require", "off"] = "auto"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    on_exit: Literal["restore", "keep", "blank"] = "restore"
    seat: Literal["auto", "off"] = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.refresh <= 120:
            raise ValueError("refresh is a number of looks per second, 0 (never) to 120")


class WaylandSettings(_Table, frozen=True):
    """`[wayland]`"""

    display: str = ""
    zero_copy: Literal["auto", "off"] = "auto"
    dmabuf: Literal["auto", "always", "never"] = "auto"
    shell: Literal["auto", "xdg"] = "auto"
    title: str = "{guest}: {connector}"
    app_id: str = "displbe.{guest}.{connector}"
    scale: Literal["fit", "stretch", "none"] = "fit"
    refresh: float = 30.0
    on_close: Literal["ignore", "detach"] = "ignore"
    outputs: dict[str, str] = {}
    surfaces: dict[str, int] = {}

    def __post_init__(self) -> None:
        if not 0 <= self.refresh <= 120:
            raise ValueError("refresh is a number of looks per second, 0 (never) to 120")
        for template in (self.title, self.app_id):
            try:
                template.format(guest="", connector="")
            except (LookupError, ValueError) as error:
                raise ValueError(f"{template!r}: only {{guest}} and {{connector}} can be filled in") from error
        if any(not 0 <= number < 1 << 32 for number in self.surfaces.values()):
            raise ValueError("surfaces are ivi ids, numbers of 32 bits")
        if len(set(self.surfaces.values())) < len(self.surfaces):
            raise ValueError("surfaces are ivi ids: no two connectors have the same")


class X11Settings(_Table, frozen=True):
    """`[x11]`"""

    display: str = ""
    scale: Literal["fit", "stretch", "none"] = "fit"
    fullscreen: bool = False
    on_close: Literal["iconify", "detach", "ignore"] = "iconify"
    refresh: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.refresh <= 1000:
            raise ValueError("refresh is a number of refreshes per second, 1 to 1000")


class Settings(_Table, frozen=True):
    """The whole file."""

    sink: Literal["drm", "wayland", "x11", "headless"] = "drm"
    log: LogSettings = LogSettings()
    xen: XenSettings = XenSettings()
    limits: Limits = Limits()
    control: ControlSettings = ControlSettings()
    metrics: MetricsSettings = MetricsSettings()
    guest: dict[str, GuestSettings] = {}
    input: InputSettings = InputSettings()
    headless: HeadlessSettings = HeadlessSettings()
    drm: DrmSettings = DrmSettings()
    wayland: WaylandSettings = WaylandSettings()
    x11: X11Settings = X11Settings()


def load(path: str) -> Settings:
    """The settings in a file. Raises ConfigError."""
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return msgspec.convert(document, Settings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error


def differences(before: Settings, after: Settings) -> list[str]:
    """The keys whose values differ, as `table.key`; of guests, `guest.NAME`."""
    found = []
    for table in msgspec.structs.fields(Settings):
        old, new = getattr(before, table.name), getattr(after, table.name)
        if isinstance(old, msgspec.Struct):
            keys = [key for key in msgspec.structs.fields(old) if getattr(old, key.name) != getattr(new, key.name)]
            found += [f"{table.encode_name}.{key.encode_name}" for key in keys]
        elif isinstance(old, dict):
            found += [f"{table.encode_name}.{key}" for key in sorted(old | new) if old.get(key) != new.get(key)]
        elif old != new:
            found.append(table.encode_name)
    return found
