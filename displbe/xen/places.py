"""Where XenStore and grants are to be reached. Imports little: `early` needs it before anything else is loaded."""

from __future__ import annotations

import os
import socket
import stat
from typing import Final

__all__ = ["GNTDEV", "SOCKETS", "XENBUS", "connect", "find", "is_device"]

SOCKETS: Final = ("/run/xenstored/socket", "/var/run/xenstored/socket")
XENBUS: Final = "/dev/xen/xenbus"
GNTDEV: Final = "/dev/xen/gntdev"


def find(paths: tuple[str, ...] = (*SOCKETS, XENBUS)) -> str | None:
    """The socket in Dom0, the device in a driver domain, and for who may not use the socket.

    Where there are only such that we may not use, one of them: to open it says what is wrong.
    """
    there = [path for path in paths if os.path.exists(path)]
    return next((path for path in there if os.access(path, os.R_OK | os.W_OK)), there[-1] if there else None)


def connect(path: str, patience: float | None = None) -> int:
    """A non-blocking fd on xenstored's socket, for which one waits so many seconds at most, or on the xenbus device. Raises OSError."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(patience)
        connection.connect(path)
        connection.setblocking(False)
        return connection.detach()


def is_device(fd: int) -> bool:
    """Whether this is not xenstored's socket, but the kernel's device."""
    return not stat.S_ISSOCK(os.fstat(fd).st_mode)
