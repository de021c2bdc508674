"""Sockets in the file system, and who may use them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

__all__ = ["unix_listener"]

BACKLOG: Final = 8


@contextlib.contextmanager
def unix_listener(path: Path) -> Iterator[trio.SocketListener]:
    """Listen at a path, for the members of our own group, while the block lasts. Raises OSError, also where somebody listens already."""
    if _is_left(path):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as ear:
        ear.bind(str(path))
        mine = os.stat(path)
        try:
            os.chmod(path, 0o660)
            ear.listen(BACKLOG)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(ear.dup()))
            try:
                yield listener
            finally:
                listener.socket.close()
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), mine):  # not a successor's
                    path.unlink()


def _is_left(path: Path) -> bool:
    """Whether there is the socket of a daemon that was killed. Raises OSError when somebody listens there."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        return True
    raise OSError(errno.EADDRINUSE, "another displbe listens there")
