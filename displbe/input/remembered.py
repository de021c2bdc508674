"""Who has the shared devices by the operator's word, for the daemon that comes next: a file in the runtime directory.

It holds as long as the configuration says what it said then: who edits that means it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

__all__ = ["Remembered"]

NAME: Final = "focus"
MAX_SIZE: Final = 4096

_log = structlog.get_logger("displbe.focus")


class _Word(msgspec.Struct, frozen=True):
    """The file, as JSON."""

    configured: str
    first: str


class Remembered:
    """The file in a directory; None: nothing is remembered. `configured` is `[input] focus`."""

    def __init__(self, directory: Path | None, configured: str) -> None:
        self.configured = configured
        self._path = directory / NAME if directory is not None else None

    def first(self) -> str:
        """The guest that has been given the shared devices last; else what the configuration says."""
        if self._path is None:
            return self.configured
        try:
            with self._path.open("rb") as file:
                word = msgspec.json.decode(file.read(MAX_SIZE), type=_Word)
        except FileNotFoundError:
            return self.configured
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("the operator's word is lost", file=str(self._path), reason=str(error))
            return self.configured
        return word.first if word.configured == self.configured else self.configured

    def keep(self, first: str) -> None:
        """The operator has given them to this guest."""
        if self._path is None:
            return
        new = self._path.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(_Word(self.configured, first)))
            os.replace(new, self._path)
        except OSError as error:
            _log.warning("the operator's word will not outlast displbe", file=str(self._path), reason=str(error))
