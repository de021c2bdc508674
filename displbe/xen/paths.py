"""Paths of XenStore and gntdev, and how to connect to XenStore. Imports little: `stale_devices` uses it at the start."""

from __future__ import annotations

import os
import socket
import stat
from typing import Final

__all__ = ["GNTDEV", "SOCKETS", "XENBUS", "connect", "find_store", "is_device", "may_be_store"]

SOCKETS: Final = ("/run/xenstored/socket", "/var/run/xenstored/socket")
"""xenstored's socket, in Dom0 only."""
XENBUS: Final = "/dev/xen/xenbus"
"""The kernel's connection to XenStore, in any domain."""
GNTDEV: Final = "/dev/xen/gntdev"


def find_store(paths: tuple[str, ...] = (*SOCKETS, XENBUS)) -> str | None:
    """Return the first path that this process may use: the socket in Dom0, else the device. Return None when none of them exists.

    When this process may use none of them, one of those that exist is returned, so that opening it gives the reason.
    """
    present = [path for path in paths if os.path.exists(path)]
    usable = (path for path in present if os.access(path, os.R_OK | os.W_OK))
    return next(usable, present[-1] if present else None)


def may_be_store(path: str) -> bool:
    """Return whether a path may lead to XenStore: to a socket, to a xenbus device (/dev/xen/xenbus, or xenfs' /proc/xen/xenbus, which is
    a regular file), or to nothing yet. Reading another file, such as /dev/zero, might not end.
    """
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) or os.path.basename(os.path.realpath(path)) == "xenbus"
    except OSError:
        return True


def connect(path: str, timeout: float | None = None) -> int:
    """Return a non-blocking fd of xenstored's socket or of the xenbus device.

    Waits at most `timeout` seconds for the socket (None: no limit). Raises OSError.
    """
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        connection.setblocking(False)
        return connection.detach()


def is_device(fd: int) -> bool:
    """Return whether an fd of `connect` is the kernel's device, not xenstored's socket."""
    return not stat.S_ISSOCK(os.fstat(fd).st_mode)
