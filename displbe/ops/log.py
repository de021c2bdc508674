"""The log, by structlog: lines of JSON for a journal, coloured text for a terminal.

Many lines contain text that a guest wrote. It is escaped and truncated, so that it can neither forge a line nor control a terminal.
Lines that repeat for the same device are written at a limited rate; the next one says how many were suppressed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

import structlog

from .text import escape
from .writer import LineWriter

__all__ = ["RateLimit", "SparseLog", "configure", "dropped", "flush", "set_level"]

BURST: Final = 20
"""Lines of one kind from one device that are written before the rate limit applies."""
RATE: Final = 1.0
"""Lines per second after that."""
MAX_KINDS: Final = 1024
"""Kinds of lines that are counted. When there are more, counting restarts."""
SPARSE: Final = 10.0
"""Seconds between two equal lines of a SparseLog."""

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


class SparseLog:
    """Writes a line unless the same line was written less than `seconds` ago. It is for events that a guest can cause at any rate.

    Two lines are the same when they have the same event and the same reason.
    """

    def __init__(self, logger: Any, seconds: float = SPARSE) -> None:
        self._logger = logger
        self._seconds = seconds
        self._written: dict[tuple[str, str], float] = {}

    def __call__(self, event: str, reason: str = "", *, level: str = "warning", **values: object) -> None:
        now = time.monotonic()
        if now - self._written.get((event, reason), -self._seconds) >= self._seconds:
            self._written = {key: when for key, when in self._written.items() if now - when < self._seconds}
            self._written[event, reason] = now
            getattr(self._logger, level)(event, reason=reason or None, **values)


class _Logger(structlog.make_filtering_bound_logger(logging.INFO)):  # type: ignore[misc]
    """The class of all our loggers. structlog caches loggers on first use, so `set_level` replaces the methods of this class."""


def set_level(level: str) -> None:
    """Write lines of this level and above from now on. A line below the level costs the call of an empty function."""
    for name, method in vars(
        structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()])
    ).items():
        if not name.startswith("__"):
            setattr(_Logger, name, method)


_writer: LineWriter | None = None


def dropped() -> int:
    """Return the number of lines that were dropped because the log's reader was too slow."""
    return _writer.dropped if _writer is not None else 0


def flush() -> None:
    """Wait until all lines so far are written, for a limited time."""
    if _writer is not None:
        _writer.flush()


def _lost_json(count: int) -> str:
    entry = {"count": count, "event": "lines dropped: the log's reader is too slow", "level": "warning"}
    return json.dumps(entry | {"timestamp": datetime.now(UTC).isoformat()})


def _lost_console(count: int) -> str:
    return f"{count} lines dropped: the log's reader is too slow"


def configure(form: Literal["auto", "json", "console"] = "auto", level: str = "info") -> None:
    """Set up the log on stderr. `auto` is `console` (coloured text) when stderr is a terminal, else `json`."""
    global _writer  # noqa: PLW0603
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    final: list[Any]
    if console:
        # structlog prefers rich's tracebacks, but one takes most of a second, during which no ring is served.
        plain = structlog.dev.plain_traceback
        final = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    else:
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        final = [structlog.processors.ExceptionRenderer(frames), structlog.processors.JSONRenderer()]
    flush()
    writer = _writer = LineWriter(sys.stderr, _lost_console if console else _lost_json)
    set_level(level)
    structlog.configure(
        processors=[
            RateLimit(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escape_values,
            *final,
        ],
        wrapper_class=_Logger,
        logger_factory=lambda *arguments: writer,
        cache_logger_on_first_use=True,
    )
