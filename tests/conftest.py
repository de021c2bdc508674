"""Hypothesis without deadlines: a loaded machine is slow, not wrong. Tracebacks in the log as the daemon writes them, which is fast."""

import structlog
from hypothesis import settings

settings.register_profile("displbe", deadline=None)
settings.load_profile("displbe")

structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("%H:%M:%S.%f", utc=True),
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)
