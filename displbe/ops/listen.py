"""UNIX sockets in the file system: creation with permissions, replacement of stale ones, removal."""

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
    """Listen at a path while the block lasts. Only our own user and group may connect (mode 0660).

    Raises OSError; EADDRINUSE when another process listens there.
    """
    if _is_stale(path):
        path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as server:
        server.bind(str(path))
        ours = os.stat(path)
        try:
            os.chmod(path, 0o660)
            server.listen(BACKLOG)
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(server.dup()))
            try:
                yield listener
            finally:
                listener.socket.close()
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(path), ours):  # another daemon may have put its own socket there
                    path.unlink()


def _is_stale(path: Path) -> bool:
    """Return whether the socket at the path is left over from a killed daemon. Raises OSError EADDRINUSE when a process listens there."""
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
