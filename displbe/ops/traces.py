"""Traces of devices that were shut off, as files: evidence, after the guest has connected anew or is gone.

A file has the connectors of one device: for each a line of JSON (`Piece`), and after it as many octets of records as that says.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

__all__ = ["AUTO", "MAGIC", "Piece", "TraceFiles", "directory_of", "read_traces"]

MAGIC: Final = b"displbe trace 2\n"
AUTO: Final = "auto"
KEPT: Final = 16
"""Files of all guests together…"""
SHARE: Final = 4
"""…and of one guest: its oldest make room for its newest."""
PAUSE: Final = 60.0
"""Seconds between two of a guest, which could have itself shut off again and again."""
MAX_NAME: Final = 64
_log = structlog.get_logger("displbe.trace")


class Piece(msgspec.Struct, frozen=True):
    """What there is to know of one connector's records."""

    guest: str
    connector: str
    epoch: float
    """What to add to a record's times to have seconds since 1970."""
    reason: str
    """Why the device was shut off."""


class _Head(Piece, frozen=True):
    octets: int


def directory_of(setting: str, environment: Mapping[str, str] = os.environ) -> str:
    """The directory that `[log] traces` means. `auto`: one below what systemd gives the service (StateDirectory=), else none."""
    if setting != AUTO:
        return setting
    state = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    return f"{state}/traces" if state else ""


class TraceFiles:
    """The files in a directory; without one, nothing is kept."""

    def __init__(self, directory: str) -> None:
        self.dropped = 0
        """Shut-offs of which no trace was kept, because they followed another one of the same guest too soon."""
        self._directory = directory
        self._not_before: dict[str, float] = {}

    def keep(self, guest: str, number: int, pieces: Iterable[tuple[Piece, bytes]]) -> None:
        """Have the traces of a guest's device written soon, in a thread of its own: a disk may be slow.

        `pieces` are not asked for when nothing is kept.
        """
        if not self._directory:
            return
        now = time.monotonic()
        if now < self._not_before.get(guest, now):
            self.dropped += 1
            _log.warning("trace not kept: it follows too soon", guest=guest, dropped=self.dropped)
            return
        self._not_before = {other: then for other, then in self._not_before.items() if then > now}
        self._not_before[guest] = now + PAUSE
        octets = MAGIC + b"".join(_encode(piece, records) for piece, records in pieces)
        threading.Thread(target=self._write, args=(guest, number, octets), name="trace", daemon=True).start()

    def _write(self, guest: str, number: int, octets: bytes) -> None:
        try:
            directory = Path(self._directory)
            directory.mkdir(exist_ok=True)
            safe = re.sub(r"[^A-Za-z0-9_.]", "_", guest)[:MAX_NAME]
            path = directory / f"{safe}-{number}-{time.time_ns()}.trace"
            part = path.with_suffix(".part")
            part.write_bytes(octets)
            part.rename(path)
            _make_room(directory)
            _log.info("trace written", guest=guest, file=str(path))
        except OSError as error:
            _log.warning("cannot write the trace", directory=self._directory, reason=str(error))


def _encode(piece: Piece, records: bytes) -> bytes:
    head = _Head(**msgspec.structs.asdict(piece), octets=len(records))
    return msgspec.json.encode(head) + b"\n" + records


def _make_room(directory: Path) -> None:
    """Remove what is too much: of the guest that has the most, the oldest. One guest's files cost another one none of its share."""
    guests: dict[str, list[Path]] = {}
    for file in sorted(directory.glob("*.trace"), key=lambda file: file.stat().st_mtime):
        guests.setdefault(file.name.partition("-")[0], []).append(file)
    while guests:
        most = max(guests.values(), key=len)
        if len(most) <= SHARE and sum(map(len, guests.values())) <= KEPT:
            return
        most.pop(0).unlink(missing_ok=True)


def read_traces(octets: bytes) -> list[tuple[Piece, bytes]]:
    """What a file says: of each connector, the facts and the records. Raises ValueError, also for a file that is not whole."""
    if not octets.startswith(MAGIC):
        raise ValueError("this is no trace of displbe")
    found: list[tuple[Piece, bytes]] = []
    rest = octets[len(MAGIC) :]
    while rest:
        line, _, rest = rest.partition(b"\n")
        try:
            head = msgspec.json.decode(line, type=_Head)
        except msgspec.DecodeError as error:
            raise ValueError(f"this trace is not whole: {error}") from error
        if not 0 <= head.octets <= len(rest):
            raise ValueError("this trace is not whole")
        found.append((Piece(head.guest, head.connector, head.epoch, head.reason), rest[: head.octets]))
        rest = rest[head.octets :]
    return found
