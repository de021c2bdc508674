"""The configuration: a TOML file that is checked as a whole before anything starts. configs/displbe.toml explains each key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.input.settings import InputSettings
from displbe.ops.settings import ControlSettings, LogSettings, MetricsSettings
from displbe.settings import Table
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.x11.settings import X11Settings
from displbe.xen.settings import XenSettings

__all__ = ["RELOADABLE", "ConfigError", "Settings", "differences", "load"]


RELOADABLE: Final = {
    "log.level": "at once",
    "limits.": "for guests that come later",
    "guest.": "from a guest's next connection on (screenshot at once)",
    "input.focus": "at once",
}
"""The keys that can be changed without a restart, as `differences` names them, and the time from which the change applies."""


class ConfigError(Exception):
    """The configuration is wrong. The text names the file, the key and the error."""


class Settings(Table, frozen=True):
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
    """Return the settings in a file. Raises ConfigError."""
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
    """Return the keys whose values differ, as `table.key`; for a guest's table, `guest.NAME`."""
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
