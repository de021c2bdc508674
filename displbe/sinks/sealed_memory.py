"""Memory that is shared with a compositor or an X server."""

from __future__ import annotations

import fcntl
import os
from typing import Final

__all__ = ["sealed_memfd"]

SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sealed_memfd(size: int) -> int:
    """Return the fd of a new memfd of `size` bytes. Raises OSError.

    Its size can never change: a peer that truncated it would end displbe by SIGBUS, when it writes the next frame (memfd_create(2)).
    """
    fd = os.memfd_create("displbe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
