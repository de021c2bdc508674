"""The log's lines on their way out, in a thread: who reads them (a journal, a full disk, a stopped terminal) may be slow, the loop may not.

A line that finds no room is dropped and counted, and a later line says how many were.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TextIO

__all__ = ["LineWriter"]

ROOM: Final = 2000
"""Lines that may wait."""
BATCH: Final = 64
GOODBYE: Final = 1.0
"""Seconds that the lines have which wait when the process ends."""


class LineWriter:
    """structlog's last station. `lost` makes the line that tells how many were dropped."""

    def __init__(self, stream: TextIO, lost: Callable[[int], str]) -> None:
        self.dropped = 0
        self._write = _way_out(stream)
        self._lost = lost
        self._told = 0
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="log", daemon=True).start()
        atexit.register(self.flush)

    def msg(self, line: str) -> None:
        """Have a line written soon."""
        if self._lines.qsize() < ROOM:
            self._lines.put(line)
        else:
            self.dropped += 1

    debug = info = warning = warn = error = critical = fatal = exception = log = msg

    def flush(self, seconds: float = GOODBYE) -> bool:
        """Wait until all lines so far are written, for at most so long. False: they are not."""
        done = threading.Event()
        self._lines.put(done)
        return done.wait(seconds)

    def _work(self) -> None:
        while True:
            batch = [self._lines.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._lines.get_nowait())
            text = "".join(f"{entry}\n" for entry in batch if isinstance(entry, str))
            dropped = self.dropped
            if dropped != self._told:
                text += self._lost(dropped - self._told) + "\n"
                self._told = dropped
            if text:
                self._write(text)
            for entry in batch:
                if not isinstance(entry, str):
                    entry.set()


def _way_out(stream: TextIO) -> Callable[[str], Any]:
    """How text gets out of here. Its failures cost the lines, never the guests.

    Past Python's own buffers: a thread that waits for one of those would not let the process end.
    """
    try:
        fd = stream.fileno()
    except (OSError, ValueError):

        def write(text: str) -> None:
            with contextlib.suppress(OSError, ValueError):
                stream.write(text)
                stream.flush()

        return write

    def write_fd(text: str) -> None:
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        with contextlib.suppress(OSError):
            while rest:
                try:
                    rest = rest[os.write(fd, rest) :]
                except BlockingIOError:  # somebody has made it so; a terminal's file is shared
                    time.sleep(0.01)

    return write_fd
