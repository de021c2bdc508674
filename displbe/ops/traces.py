"""Traces of devices that were shut off, as files: evidence, after the guest has connected anew or is gone."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

import msgspec
import structlog

__all__ = ["MAGIC", "TraceFiles", "read_trace"]

MAGIC: Final = b"displbe trace 1\n"
KEPT: Final = 16
"""Files; the oldest make room."""
PAUSE: Final = 10.0
"""Seconds between two: a guest could be shut off again and again."""
_log = structlog.get_logger("displbe.trace")


class TraceFiles:
    """The files in a directory; without one, nothing is kept."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._next = 0.0

    def keep(self, name: str, facts: dict[str, int | float | str], records: bytes) -> None:
        """Have a trace written soon, in a thread of its own: a disk may be slow."""
        now = time.monotonic()
        if self._directory and now >= self._next:
            self._next = now + PAUSE
            octets = MAGIC + msgspec.json.encode(facts) + b"\n" + records
            threading.Thread(target=self._write, args=(name, octets), name="trace", daemon=True).start()

    def _write(self, name: str, octets: bytes) -> None:
        try:
            directory = Path(self._directory)
            directory.mkdir(exist_ok=True)
            path = directory / f"{name}-{time.time_ns() // 1_000_000}.trace"
            part = path.with_suffix(".part")
            part.write_bytes(octets)
            part.rename(path)
            for old in sorted(directory.glob("*.trace"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
                old.unlink()
            _log.info("trace written", file=str(path))
        except OSError as error:
            _log.warning("cannot write the trace", directory=self._directory, reason=str(error))


def read_trace(octets: bytes) -> tuple[dict[str, int | float | str], bytes]:
    """What a file says: facts and records. Raises ValueError."""
    if not octets.startswith(MAGIC):
        raise ValueError("this is no trace of displbe")
    head, _, records = octets[len(MAGIC) :].partition(b"\n")
    return msgspec.json.decode(head, type=dict[str, int | float | str]), records
