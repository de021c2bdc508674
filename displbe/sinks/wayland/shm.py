"""Makes wl_buffers of displbe's own memory."""

from __future__ import annotations

from typing import Final

from .conn import Connection, Proxy

__all__ = ["ARGB8888", "XRGB8888", "make_shm_buffer"]

ARGB8888: Final = 0
XRGB8888: Final = 1
"""wl_shm.format: every compositor has these two."""


def make_shm_buffer(
    conn: Connection, shm: Proxy, fd: int, size: int, width: int, height: int, stride: int, number: int
) -> Proxy:
    """Return the wl_buffer at the beginning of a file of `size` bytes. `number` is the wl_shm format. Raises OSError if there is no file
    descriptor to send the file with.
    """
    conn.check_sendable(fd)
    pool = conn.keep(shm.create_pool(fd, size))
    made = conn.keep(pool.create_buffer(0, width, height, stride, number))
    conn.destroy(pool)
    return made
