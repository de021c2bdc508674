"""mmap without Python's own: no duplicated fd for each mapping, and the interpreter runs on while thousands of pages are mapped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from cffi import FFI

__all__ = ["PAGE_SIZE", "Mapping"]

PAGE_SIZE: Final = 4096
_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20

_ffi: Final = FFI()
_ffi.cdef("void *mmap(void *, size_t, int, int, int, long long); int munmap(void *, size_t);")
_libc: Final[Any] = _ffi.dlopen(None)
_FAILED: Final = _ffi.cast("void *", -1)


def _mmap(address: Any, size: int, protection: int, flags: int, fd: int, offset: int) -> Any:
    got = _libc.mmap(address, size, protection, flags, fd, offset)
    if got == _FAILED:
        number = _ffi.errno
        raise OSError(number, os.strerror(number))
    return got


class Mapping:
    """Shared memory of a file, as one range of addresses. Raises OSError when any part cannot be mapped; then none is.

    `pieces`: (offset, size) in octets, whole pages, laid one after the other.
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
        """Unmap; slices of the view must not be used any more: their memory is gone."""
        self.view.release()
        _libc.munmap(self._address, self.size)
