"""Maps and copies memory without holding the GIL: thousands of granted pages, whole frames.

Python's own mmap duplicates the fd for each mapping and, before 3.13, holds the GIL while it maps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from ._libc import ffi as _ffi

__all__ = ["PAGE_SIZE", "Mapping", "copy_rows", "same_rows"]

PAGE_SIZE: Final = 4096
_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20

_libc: Final[Any] = _ffi.dlopen(None)
_FAILED: Final = _ffi.cast("void *", -1)


def _mmap(address: Any, size: int, protection: int, flags: int, fd: int, offset: int) -> Any:
    got = _libc.mmap(address, size, protection, flags, fd, offset)
    if got == _FAILED:
        number = _ffi.errno
        raise OSError(number, os.strerror(number))
    return got


class Mapping:
    """Parts of a file mapped shared, as one range of addresses. Raises OSError when a part cannot be mapped; nothing is mapped then.

    `pieces` has the (offset, size) of each part in bytes, in whole pages. The parts follow one another in memory.
    """

    def __init__(self, fd: int, pieces: Sequence[tuple[int, int]], *, writable: bool) -> None:
        self.size = sum(size for _, size in pieces)
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        if len(pieces) == 1:
            self._address = _mmap(_ffi.NULL, self.size, protection, _MAP_SHARED, fd, pieces[0][0])
        else:
            self._address = _mmap(_ffi.NULL, self.size, 0, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
            at = _ffi.cast("char *", self._address)
            for offset, size in pieces:
                try:
                    _mmap(at, size, protection, _MAP_SHARED | _MAP_FIXED, fd, offset)
                except OSError:
                    _libc.munmap(self._address, self.size)
                    raise
                at += size
        view = memoryview(_ffi.buffer(self._address, self.size)).cast("B")
        self.view = view if writable else view.toreadonly()

    def close(self) -> None:
        """Unmap. Slices of the view must not be used afterwards: their memory is gone."""
        self.view.release()
        _libc.munmap(self._address, self.size)


def copy_rows(to: memoryview, to_stride: int, of: memoryview, of_stride: int, row: int, rows: int) -> None:
    """Copy an image of `rows` rows of `row` bytes without holding the GIL; in one call when both strides are the same.

    Strides are in bytes. Raises ValueError when either side is too small.
    """
    _check_rows(to, to_stride, of, of_stride, row, rows)
    target = _ffi.cast("char *", _ffi.from_buffer(to))
    source = _ffi.cast("char *", _ffi.from_buffer(of))
    if to_stride == of_stride:
        _libc.memcpy(target, source, to_stride * (rows - 1) + row)
        return
    for _ in range(rows):
        _libc.memcpy(target, source, row)
        target += to_stride
        source += of_stride


def same_rows(one: memoryview, one_stride: int, other: memoryview, other_stride: int, row: int, rows: int) -> bool:
    """Return whether two images of `rows` rows of `row` bytes are the same. The GIL is not held meanwhile.

    Strides are in bytes. Raises ValueError when either side is too small.
    """
    _check_rows(one, one_stride, other, other_stride, row, rows)
    a = _ffi.cast("const char *", _ffi.from_buffer(one))
    b = _ffi.cast("const char *", _ffi.from_buffer(other))
    if one_stride == other_stride == row:
        return bool(_libc.memcmp(a, b, row * rows) == 0)
    return all(_libc.memcmp(a + n * one_stride, b + n * other_stride, row) == 0 for n in range(rows))


def _check_rows(to: memoryview, to_stride: int, of: memoryview, of_stride: int, row: int, rows: int) -> None:
    if rows < 1 or row < 1 or min(to_stride, of_stride) < row:
        raise ValueError("image with no pixels, or with a stride shorter than its rows")
    if len(to) < to_stride * (rows - 1) + row or len(of) < of_stride * (rows - 1) + row:
        raise ValueError("image is larger than its memory")
