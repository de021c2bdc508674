"""The file in the runtime directory that keeps the operator's choice of focus for the next daemon.

The choice is valid as long as `[input] focus` in the configuration is what it was when the choice was made: a changed configuration
overrides it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import structlog

from displbe.ops.files import replace_file

__all__ = ["FocusFile"]

NAME: Final = "focus"
MAX_SIZE: Final = 4096
"""Bytes that are read of the file at most."""

_log = structlog.get_logger("displbe.focus")


class _Content(msgspec.Struct, frozen=True):
    """The file's content, as JSON."""

    configured: str
    """`[input] focus` when the choice was made."""
    first: str
    """The guest that was chosen."""


class FocusFile:
    """The file in a directory; with None, nothing is kept. `configured` is `[input] focus`."""

    def __init__(self, directory: Path | None, configured: str) -> None:
        self.configured = configured
        self._path = directory / NAME if directory is not None else None

    def load(self) -> str:
        """Return the guest that the operator chose last; else, or where the file is unreadable, the configured one."""
        if self._path is None:
            return self.configured
        try:
            with self._path.open("rb") as file:
                content = msgspec.json.decode(file.read(MAX_SIZE), type=_Content)
        except FileNotFoundError:
            return self.configured
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning(
                "cannot read which guest had the focus: the configuration's has it now",
                file=str(self._path),
                reason=str(error),
            )
            return self.configured
        return content.first if content.configured == self.configured else self.configured

    def save(self, guest: str) -> None:
        """Keep the operator's choice. A file that cannot be written is logged."""
        if self._path is None:
            return
        try:
            replace_file(self._path, msgspec.json.encode(_Content(self.configured, guest)))
        except OSError as error:
            _log.warning(
                "cannot save which guest has the focus: after a restart the configuration's has it",
                file=str(self._path),
                reason=str(error),
            )
