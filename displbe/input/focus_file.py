"""The file in the runtime directory that keeps the operator's choice of focus for the next daemon.

The choice is valid as long as `[input] focus` in the configuration is the same as when the choice was made. A changed configuration
overrides the choice.
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
"""The maximum number of bytes that are read from the file."""

_log = structlog.get_logger("displbe.focus")


class _Content(msgspec.Struct, frozen=True):
    """The file's content, as JSON."""

    configured: str
    """`[input] focus` when the choice was made."""
    first: str
    """The guest that was chosen."""


class FocusFile:
    """The file in a directory. Without a directory, nothing is kept. `configured` is `[input] focus`."""

    def __init__(self, directory: Path | None, configured: str) -> None:
        self.configured = configured
        self._path = directory / NAME if directory is not None else None

    def load(self) -> str:
        """Return the guest that the operator chose last; or the configured guest, if there is no valid choice or the file is unreadable."""
        if self._path is None:
            return self.configured
        try:
            with self._path.open("rb") as file:
                content = msgspec.json.decode(file.read(MAX_SIZE), type=_Content)
        except FileNotFoundError:
            return self.configured
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning(
                "cannot read which guest had the focus: the guest that the configuration names has it now",
                file=str(self._path),
                reason=str(error),
            )
            return self.configured
        return content.first if content.configured == self.configured else self.configured

    def save(self, guest: str) -> None:
        """Save the operator's choice. If the file cannot be written, log a warning."""
        if self._path is None:
            return
        try:
            replace_file(self._path, msgspec.json.encode(_Content(self.configured, guest)))
        except OSError as error:
            _log.warning(
                "cannot save which guest has the focus: after a restart, the guest that the configuration names has it",
                file=str(self._path),
                reason=str(error),
            )
