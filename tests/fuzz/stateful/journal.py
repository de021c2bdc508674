"""The actions of a run: the last ones of each actor are printed when the run fails, and all are in a file while it goes on."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Final

import trio

__all__ = ["Journal"]

LAST: Final = 12
"""Actions of each actor that a report has."""


class Journal:
    """The actions. The file is written at once, because a process that dies of a signal writes no report."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)
        self._last: dict[str, deque[str]] = {}
        self.count = 0

    def note(self, actor: str, action: str) -> None:
        """Note an action."""
        line = f"{trio.current_time():9.3f} {actor}: {action}"
        self.count += 1
        self._last.setdefault(actor, deque(maxlen=LAST)).append(line)
        self._file.write(f"{line}\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def report(self) -> str:
        """Return the last actions of each actor."""
        return "\n".join(line for lines in self._last.values() for line in lines)
