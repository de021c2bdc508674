"""The log configuration of the tests."""

from __future__ import annotations

import structlog

__all__ = ["as_in_tests"]


def as_in_tests() -> None:
    """structlog's defaults, but plain tracebacks: rich takes most of a second for one, in which the daemon's loop stands still."""
    structlog.reset_defaults()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("%H:%M:%S.%f", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
