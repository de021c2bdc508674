"""One daemon at a time serves the guests of a domain. Imports little: `early` needs it before anything else is loaded."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["alone"]


@contextmanager
def alone(device: str, patience: float = 0.0) -> Iterator[None]:
    """While this is held, no other daemon serves anybody. The mark is a lock on a device that each of them needs and nobody else can open;
    it goes with the process, however that ends.

    Raises OSError: BlockingIOError when another one has held it for so many seconds.
    """
    mark = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(mark, time.monotonic() + patience)
        yield
    finally:
        os.close(mark)


def _lock(mark: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
