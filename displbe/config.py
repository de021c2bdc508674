"""The configuration: a TOML file that is checked as a whole before anything starts. configs/displbe.toml explains each key."""

from __future__ import annotations

import os
import stat
import tomllib
from typing import Any, Final, Literal

import msgspec

from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.input.bindings import parse_unique_id
from displbe.input.settings import InputSettings
from displbe.ops.settings import ControlSettings, LogSettings, MetricsSettings
from displbe.ops.text import escape
from displbe.pump.settings import DaemonSettings
from displbe.settings import Table
from displbe.sinks.drm.settings import DrmSettings
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.wayland.settings import WaylandSettings
from displbe.sinks.x11.settings import X11Settings
from displbe.xen.settings import XenSettings

__all__ = ["RELOADABLE", "ConfigError", "Settings", "decode", "differences", "load"]

MAX_FILE: Final = 128 * 1024
"""Maximum bytes of the file. The example with every key and its explanation has 17 KiB."""
MAX_LINE: Final = 4096
"""Maximum bytes of a line. tomllib's time grows with the square of the number of parts of a dotted key (`a.a.a…`)."""
MAX_TEXT: Final = 1024
"""Maximum bytes of a text, such as a path, and of a key."""
_CONTROL: Final = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)))
"""Characters that no path, name or title needs. A NUL ends a path for the kernel, and Python's functions for files refuse it."""

RELOADABLE: Final = {
    "log.level": "at once",
    "limits.": "for guests that come later",
    "guest.": "from a guest's next connection on (screenshot at once)",
    "input.focus": "at once",
}
"""The keys that can be changed without a restart, as `differences` names them, and the time from which the change applies."""


class ConfigError(Exception):
    """The configuration is wrong. The text is one line, which names the file, the key and the error."""


class Settings(Table, frozen=True):
    """The whole file."""

    sink: Literal["drm", "wayland", "x11", "headless"] = "drm"
    daemon: DaemonSettings = DaemonSettings()
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

    def __post_init__(self) -> None:
        if self.control.socket and self.control.socket == self.metrics.socket:
            raise ValueError("control.socket and metrics.socket must be different paths, or one of them empty")
        for name, guest in self.guest.items():
            if not name:  # the name of guests whose names are not known
                raise ValueError("a [guest.NAME] table needs the guest's name in xl")
            try:
                if guest.input:
                    parse_unique_id(guest.input)
            except ValueError as error:
                raise ValueError(f"guest.{name}.input: {error}; it is K:ID;P:ID;T:ID") from error


def load(path: str) -> Settings:
    """Return the settings in a file. Raises ConfigError, whatever the path names and the file holds."""
    try:
        return decode(_read(path))
    except OSError as error:
        raise ConfigError(f"{escape(path)}: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"{escape(path)}: {error}") from error


def decode(data: bytes) -> Settings:
    """Return the settings in the bytes of a file. Raises ConfigError, whose text does not name the file then."""
    try:
        document = _parse(data)
        settings = msgspec.convert(document, Settings)
        _check_texts(document)
    except (ValueError, msgspec.ValidationError) as error:
        raise ConfigError(escape(str(error))) from error
    return settings


def _read(path: str) -> bytes:
    """Return the content of a regular file. Raises OSError; ConfigError for any other kind of file, and for a file that is too large."""
    # O_NONBLOCK: to open a FIFO must not wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError("Is a directory")
        if not stat.S_ISREG(mode):
            raise ConfigError("it is not a regular file")
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ConfigError(f"it is larger than {MAX_FILE} bytes; configs/displbe.toml shows all that it may hold")
    return data


def _parse(data: bytes) -> dict[str, Any]:
    """Return the TOML document. Raises ValueError; TOMLDecodeError and UnicodeDecodeError are among its subclasses."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"line {number} has more than {MAX_LINE} bytes; a list may have several lines")
    text = data.decode("utf-8")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("lists or tables are nested too deep; the deepest key is [guest.NAME] connectors") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:  # Python's limit of digits: its way out, after the semicolon, is for programs
        raise ValueError(f"a value cannot be read: {str(error).partition(';')[0]}") from error


def _check_texts(value: Any, place: str = "$") -> None:
    """Check the keys and texts of a document. It has the structure of Settings, so it is not deep. Raises ValueError."""
    match value:
        case str() if not _CONTROL.isdisjoint(value):
            raise ValueError(f"a control character, such as a line break or NUL, is in the text - at `{place}`")
        case str() if len(value.encode()) > MAX_TEXT:
            raise ValueError(f"the text has more than {MAX_TEXT} bytes - at `{place}`")
        case dict():
            for key, inner in value.items():
                _check_texts(key, f"{place}.{key[:64]}")
                _check_texts(inner, f"{place}.{key}")
        case list():
            for index, inner in enumerate(value):
                _check_texts(inner, f"{place}[{index}]")


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
