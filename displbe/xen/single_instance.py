"""The lock that lets one daemon at a time serve a domain's guests. Imports little: `stale_devices` uses it at the start."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["single_instance"]


@contextmanager
def single_instance(device: str, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock while the block lasts.

    The lock is a flock on a device that every daemon needs and only displbe's user may open. The kernel releases it when the process ends,
    for whatever reason.

    Raises BlockingIOError when another process still holds it after `timeout` seconds, other OSErrors when the device cannot be opened.
    """
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(fd, time.monotonic() + timeout)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
