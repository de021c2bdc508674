"""The log: structlog, JSON lines for a journal, colours for a terminal.

What guests wrote is in many lines: it is escaped and cut, so that it can neither forge a line nor drive a terminal. A line that is
repeated for the same device is written at a bounded rate, and the next one says how many were not.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO, cast

import structlog

from .text import escape

__all__ = ["RateLimit", "configure", "dropped"]

BURST: Final = 20
"""Lines of one kind from one device that are written at once…"""
RATE: Final = 1.0
"""…and then this many per second."""
MAX_KINDS: Final = 1024

Event = MutableMapping[str, Any]


def _escape_values(logger: Any, method: str, event: Event) -> Event:
    for key, value in event.items():
        if isinstance(value, str) and key != "exception":
            event[key] = escape(value)
        elif isinstance(value, bytes):
            event[key] = escape(value.decode("utf-8", "backslashreplace"))
    return event


class RateLimit:
    """A structlog processor: a token bucket for each (event, domid, device, connector)."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[Any, ...], tuple[float, float, int]] = {}

    def __call__(self, logger: Any, method: str, event: Event) -> Event:
        key = (event.get("event"), event.get("domid"), event.get("device"), event.get("connector"))
        now = time.monotonic()
        tokens, then, suppressed = self._buckets.get(key, (float(BURST), now, 0))
        tokens = min(float(BURST), tokens + (now - then) * RATE)
        if tokens < 1:
            self._buckets[key] = (tokens, now, suppressed + 1)
            raise structlog.DropEvent
        if len(self._buckets) > MAX_KINDS:
            self._buckets.clear()
        self._buckets[key] = (tokens - 1, now, 0)
        if suppressed:
            event["suppressed"] = suppressed
        return event


def dropped() -> int:
    """Lines that were lost because the log's reader was too slow."""
    return 0


class _Patient:
    """A stream whose failures (a full disk, a reader that has gone) cost the line, never the guests."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(form: Literal["auto", "json", "console"] = "auto", level: str = "info") -> None:
    """Set the log up: `auto` is colours where stderr is a terminal, JSON lines else."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    final: list[Any]
    if console:
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            RateLimit(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape_values,
            *final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Patient(sys.stderr))),
        cache_logger_on_first_use=True,
    )
