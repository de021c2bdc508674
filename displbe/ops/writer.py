"""Writes the log's lines in a thread. The loop must not wait for their reader, which may be slow (a journal, a full disk, a stopped
terminal).

When too many lines wait, further lines are dropped and counted; a later line says how many.
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

from displbe.threads import start_thread

__all__ = ["LineWriter"]

MAX_WAITING: Final = 2000
"""Lines that may wait to be written."""
BATCH: Final = 64
"""Lines that are written at once."""
EXIT_TIMEOUT: Final = 1.0
"""Seconds to write the waiting lines when the process ends."""


class LineWriter:
    """A structlog logger that writes lines. `lost` returns the line for a number of dropped lines."""

    def __init__(self, stream: TextIO, lost: Callable[[int], str]) -> None:
        self.dropped = 0
        self._write = _writer_of(stream)
        self._lost = lost
        self._reported = 0
        """Dropped lines that have been reported."""
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        """Lines, and events to set when all lines before have been written."""
        start_thread("log", self._work)
        atexit.register(self.flush)

    def msg(self, line: str) -> None:
        """Queue a line, or drop it."""
        if self._lines.qsize() < MAX_WAITING:
            self._lines.put(line)
        else:
            self.dropped += 1

    debug = info = warning = warn = error = critical = fatal = exception = log = msg

    def flush(self, seconds: float = EXIT_TIMEOUT) -> bool:
        """Wait until all lines queued so far are written. Return False if that takes longer than `seconds`."""
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
            if dropped != self._reported:
                text += self._lost(dropped - self._reported) + "\n"
                self._reported = dropped
            if text:
                self._write(text)
            for entry in batch:
                if not isinstance(entry, str):
                    entry.set()


def _writer_of(stream: TextIO) -> Callable[[str], Any]:
    """Return a function that writes text to a stream. Text that cannot be written is lost.

    It bypasses Python's buffers, because a thread that waits while it holds one of their locks would keep the process from ending.
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
                except BlockingIOError:  # another process that shares the terminal has set O_NONBLOCK
                    time.sleep(0.01)

    return write_fd
