"""Trace files, with the last requests of a device that was shut off. They remain when the guest has reconnected or gone.

A file has one section for each connector of the device: a line of JSON (`TraceHeader` and the number of bytes), then the records.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog

from displbe.shortage import shortage
from displbe.threads import start_thread

from .files import replace_file

__all__ = ["AUTO", "MAGIC", "TraceFiles", "TraceHeader", "directory_of", "read_traces"]

MAGIC: Final = b"displbe trace 2\n"
AUTO: Final = "auto"
MAX_FILES: Final = 16
"""Maximum number of files of all guests together."""
MAX_GUEST_FILES: Final = 4
"""Maximum number of files of one guest. The oldest one is removed for a new one."""
MIN_INTERVAL: Final = 60.0
"""Minimum seconds between two files of a guest, because a guest can cause any number of shut-offs."""
MAX_WRITERS: Final = 2
"""Maximum number of threads that write traces. A disk that hangs must not collect threads."""
MAX_NAME: Final = 64
"""Maximum characters of the guest's name in a file's name."""
_log = structlog.get_logger("displbe.trace")


class TraceHeader(msgspec.Struct, frozen=True):
    """Describes the records of one connector."""

    guest: str
    connector: str
    epoch: float
    """Seconds to add to a record's time to get the time since 1970."""
    reason: str
    """Why the device was shut off."""


class _FileHeader(TraceHeader, frozen=True):
    """The line of JSON before the records."""

    octets: int
    """Bytes of records after the line."""


def directory_of(setting: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the directory for `[log] traces`; empty: no traces are kept. `auto` is `traces` in the service's state directory
    (StateDirectory= in systemd.exec(5)), or empty if there is none.
    """
    if setting != AUTO:
        return setting
    state = environment.get("STATE_DIRECTORY", "").partition(":")[0]
    return f"{state}/traces" if state else ""


class TraceFiles:
    """The trace files in a directory. If `directory` is empty, nothing is kept."""

    def __init__(self, directory: str) -> None:
        self.dropped = 0
        """Traces that were not kept: one of the same guest was kept less than MIN_INTERVAL before, or no thread could write it."""
        self._writers: list[threading.Thread] = []
        self._directory = directory
        self._not_before: dict[str, float] = {}

    def keep(self, guest: str, number: int, sections: Iterable[tuple[TraceHeader, bytes]]) -> None:
        """Write the trace of a guest's device in a separate thread, because a disk may be slow.

        `sections` are not evaluated when nothing is kept.
        """
        if not self._directory:
            return
        now = time.monotonic()
        if now < self._not_before.get(guest, now):
            self.dropped += 1
            _log.warning("trace not kept: the guest's last one is too recent", guest=guest, dropped=self.dropped)
            return
        self._not_before = {other: then for other, then in self._not_before.items() if then > now}
        self._not_before[guest] = now + MIN_INTERVAL
        self._writers = [writer for writer in self._writers if writer.is_alive()]
        try:
            if len(self._writers) >= MAX_WRITERS:
                raise TimeoutError(errno.ETIMEDOUT, "the disk has not taken the last ones")
            data = MAGIC + b"".join(_encode(header, records) for header, records in sections)
            self._writers.append(start_thread("trace", self._write, guest, number, data))
        except (OSError, MemoryError) as error:
            self.dropped += 1
            _log.warning("trace not kept", guest=guest, reason=shortage(error), dropped=self.dropped)

    def _write(self, guest: str, number: int, data: bytes) -> None:
        try:
            directory = Path(self._directory)
            directory.mkdir(exist_ok=True)
            safe = re.sub(r"[^A-Za-z0-9_.]", "_", guest)[:MAX_NAME]
            path = directory / f"{safe}-{number}-{time.time_ns()}.trace"
            replace_file(path, data)
            _remove_surplus(directory)
            _log.info("trace written", guest=guest, file=str(path))
        except OSError as error:
            _log.warning("cannot write the trace", directory=self._directory, reason=shortage(error))


def _encode(header: TraceHeader, records: bytes) -> bytes:
    line = _FileHeader(**msgspec.structs.asdict(header), octets=len(records))
    return msgspec.json.encode(line) + b"\n" + records


def _remove_surplus(directory: Path) -> None:
    """Remove files until both limits are kept. Each time, the oldest file of the guest with the most files is removed, so that no guest can
    displace another guest's files.
    """
    guests: dict[str, list[Path]] = {}
    for file in sorted(directory.glob("*.trace"), key=lambda file: file.stat().st_mtime):
        guests.setdefault(file.name.partition("-")[0], []).append(file)
    while guests:
        most = max(guests.values(), key=len)
        if len(most) <= MAX_GUEST_FILES and sum(map(len, guests.values())) <= MAX_FILES:
            return
        most.pop(0).unlink(missing_ok=True)


def read_traces(data: bytes) -> list[tuple[TraceHeader, bytes]]:
    """Return the header and the records of each connector in a file. Raises ValueError if the file is not a trace or is incomplete."""
    if not data.startswith(MAGIC):
        raise ValueError("this is not a trace of displbe")
    found: list[tuple[TraceHeader, bytes]] = []
    rest = data[len(MAGIC) :]
    while rest:
        line, _, rest = rest.partition(b"\n")
        try:
            header = msgspec.json.decode(line, type=_FileHeader)
        except msgspec.DecodeError as error:
            raise ValueError(f"this trace is incomplete: {error}") from error
        if not 0 <= header.octets <= len(rest):
            raise ValueError("this trace is incomplete")
        found.append((TraceHeader(header.guest, header.connector, header.epoch, header.reason), rest[: header.octets]))
        rest = rest[header.octets :]
    return found
