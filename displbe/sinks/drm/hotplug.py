"""Notices monitors and cards that come and go, by uevents through pyudev.

The sink then has each card look (`Card` in card.py): it probes its connectors, and its outputs light or darken their screens (`reconcile`).
Without pyudev or libudev, the connectors are polled.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any, Final

import structlog
import trio

from displbe.ops.log import SparseLog

__all__ = ["POLL", "watch"]

POLL: Final = 3.0
"""Seconds between two probes of the connectors where there are no uevents."""
_log = structlog.get_logger("displbe.drm")


def _monitor() -> Any:
    """Return a started monitor of DRM's uevents. Raises ImportError without pyudev or libudev, OSError."""
    pyudev = importlib.import_module("pyudev")
    # udevd passes an event on after it has set the node's owner. Without udevd there are only the kernel's own events.
    source = "udev" if os.path.exists("/run/udev/control") else "kernel"
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source)
    monitor.filter_by("drm")
    monitor.start()
    _log.debug("events of monitors", source=source)
    return monitor


async def watch(changed: Callable[[], None], poll: Callable[[], None]) -> None:
    """Call `changed` when a card or a connector may have changed, until cancelled. Extra calls do no harm.

    Where that is not told, call `poll` every few seconds.
    """
    say = SparseLog(_log)
    try:
        monitor = _monitor()
        while True:
            await trio.lowlevel.wait_readable(monitor.fileno())
            try:
                while monitor.poll(timeout=0) is not None:
                    pass
            except OSError:
                raise
            except Exception as error:
                # pyudev cannot parse the event. The pause limits the rate if the event stays in the socket.
                say("event of a monitor not understood: connectors are probed", type(error).__name__, level="exception")
                await trio.sleep(POLL)
            changed()
    except (ImportError, OSError) as error:
        _log.info("no events of monitors: connectors are polled", reason=str(error), seconds=POLL)
    while True:
        await trio.sleep(POLL)
        poll()
