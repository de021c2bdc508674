"""Maps, lends and copies memory without holding the GIL: thousands of granted pages, whole frames.

Python's own mmap duplicates the fd for each mapping and, before 3.13, holds the GIL while it maps and unmaps.

Memory is *borrowed*. Its owner may let it go at any time, while a thread copies from it. So nothing keeps a view of it: `Mapping.borrow`
lends it for the length of a block. It stays mapped until the last view of it is gone, slices included, also when the owner has closed it
meanwhile. An access to memory that is not mapped would end the whole daemon by SIGSEGV, or read what is mapped there now.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Final, Protocol

import trio

from displbe.threads import run_in_thread_or_here

from ._libc import ffi as _ffi

__all__ = ["PAGE_SIZE", "Mapping", "Memory", "PrivateMemory", "Unmapped", "close_in_thread", "copy_rows", "same_rows"]

PAGE_SIZE: Final = 4096
_PROT_READ: Final = 1
_PROT_WRITE: Final = 2
_MAP_SHARED: Final = 0x01
_MAP_PRIVATE: Final = 0x02
_MAP_FIXED: Final = 0x10
_MAP_ANONYMOUS: Final = 0x20

_WAIT: Final = 0.02
"""Seconds that a closing thread waits for borrowers at a time: long enough for the copy of a frame."""
_LONGEST_PAUSE: Final = 0.5
"""Longest pause in seconds between two of these waits."""

_libc: Final[Any] = _ffi.dlopen(None)
_FAILED: Final = _ffi.cast("void *", -1)


class Unmapped(Exception):
    """The memory's owner has closed it: nothing can be read from it or written to it any more."""

    def __init__(self) -> None:
        super().__init__("its memory has been given back")


class Memory(Protocol):
    """Memory that its owner may close at any time."""

    size: int
    """In bytes."""

    def borrow(self) -> AbstractContextManager[memoryview]:
        """Return a context manager whose block may use the memory. It stays mapped until no view of it is left.

        Can be called in any thread. The block must not wait for another thread, because the owner may wait for the block. Entering it
        raises Unmapped when the owner has closed the memory.
        """


def _mmap(address: Any, size: int, protection: int, flags: int, fd: int, offset: int) -> Any:
    got = _libc.mmap(address, size, protection, flags, fd, offset)
    if got == _FAILED:
        number = _ffi.errno
        raise OSError(number, os.strerror(number))
    return got


class Mapping:
    """Parts of a file mapped shared, as one range of addresses (`Memory`). Raises OSError when a part cannot be mapped; nothing is mapped
    then.

    `pieces` has the (offset, size) of each part in bytes, in whole pages. The parts follow one another in memory.
    """

    def __init__(self, fd: int, pieces: Sequence[tuple[int, int]], *, writable: bool) -> None:
        size = sum(size for _, size in pieces)
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        if len(pieces) == 1:
            address = _mmap(_ffi.NULL, size, protection, _MAP_SHARED, fd, pieces[0][0])
        else:
            address = _mmap(_ffi.NULL, size, 0, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
            at = _ffi.cast("char *", address)
            for offset, length in pieces:
                try:
                    _mmap(at, length, protection, _MAP_SHARED | _MAP_FIXED, fd, offset)
                except OSError:
                    _libc.munmap(address, size)
                    raise
                at += length
        self._own(address, size, writable)

    def _own(self, address: Any, size: int, writable: bool) -> None:
        self.size = size
        self._address = address
        self._writable = writable
        self._closed = False
        self._unmapped = False
        self._loans: dict[int, weakref.ref[Any]] = {}
        """What is borrowed now. Its key is that of `_returned`: a dead reference cannot be compared."""
        # A thread can take this lock twice: the garbage collector may call `_returned` at any point of any thread.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def borrow(self) -> Loan:
        """`Memory.borrow`"""
        return Loan(self)

    def _lend(self) -> memoryview:
        """Return a view. All slices and casts of it refer to one object of cffi, so that the mapping sees when the last of them is gone:
        releasing a view does not fail while there are slices of it.
        """
        with self._lock:
            if self._closed:
                raise Unmapped
            whole = _ffi.buffer(self._address, self.size)
            loan = weakref.ref(whole, self._returned)
            self._loans[id(loan)] = loan
        view = memoryview(whole)
        return view if self._writable else view.toreadonly()

    def _returned(self, loan: weakref.ref[Any]) -> None:
        """Take note that the last view of a loan is gone. The last loan of a closed mapping unmaps it, in this thread."""
        with self._lock:
            del self._loans[id(loan)]
            address = self._take_address() if self._closed else None
        self._unmap(address)

    def _take_address(self) -> Any:
        """Return the address of a closed mapping if it is time to unmap it, else None."""
        if self._loans:
            return None
        address, self._address = self._address, None
        return address

    def _unmap(self, address: Any) -> None:
        """Unmap, unless there is no address to unmap. Not under the lock: `borrow` must not wait for this."""
        if address is None:
            return
        _libc.munmap(address, self.size)
        with self._changed:
            self._unmapped = True
            self._changed.notify_all()

    @property
    def borrowers(self) -> int:
        """The number of loans that are not returned."""
        return len(self._loans)

    def close(self, wait: float = 0.0) -> bool:
        """Lend the memory no more, and unmap it; while it is borrowed, the last borrower does so. Return whether it is unmapped.

        This waits up to `wait` seconds for the borrowers, and by default not at all: then it can neither deadlock nor hold the loop. A
        second call waits again. Unmapping takes about 0.15 ms per MiB, so memory of more than a few pages is closed in a worker thread
        (`close_in_thread`).
        """
        with self._changed:
            self._closed = True
            address = self._take_address()
        self._unmap(address)
        with self._changed:
            if wait > 0:
                self._changed.wait_for(lambda: self._unmapped, wait)
            return self._unmapped


class Loan:
    """Memory that is borrowed for a block: `Mapping.borrow`."""

    __slots__ = ("_mapping", "_view")

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._view = memoryview(b"")

    def __enter__(self) -> memoryview:
        self._view = view = self._mapping._lend()
        return view

    def __exit__(self, *error: object) -> None:
        with suppress(BufferError):  # cffi or another user of the buffer interface holds it; it is still lent then
            self._view.release()


class PrivateMemory(Mapping):
    """Memory of displbe's own: `size` zeroed bytes, for whole frames. Raises OSError.

    Unlike a bytearray it is neither cleared nor freed under the GIL, which would hold up the event loop by milliseconds.
    """

    def __init__(self, size: int) -> None:
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS
        self._own(_mmap(_ffi.NULL, size, _PROT_READ | _PROT_WRITE, flags, -1, 0), size, True)


async def close_in_thread(close: Callable[[float], bool], threads: trio.CapacityLimiter | None = None) -> None:
    """Close memory by `close` (`Mapping.close`) in a worker thread, and return when it is unmapped.

    A cancellation does not keep it from being closed, but ends the wait for its borrowers: the last of them then unmaps it.
    """
    pause = 0.01
    with trio.CancelScope(shield=True) as closing:
        while not await run_in_thread_or_here(close, _WAIT, limiter=threads):
            closing.shield = False
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def copy_rows(to: memoryview, to_stride: int, of: memoryview, of_stride: int, row: int, rows: int) -> None:
    """Copy an image of `rows` rows of `row` bytes without holding the GIL; in one call when there are no gaps between rows.

    Gaps keep their bytes: they may be borders of the picture. Strides are in bytes. Raises ValueError when either side is too small.
    """
    _check_rows(to, to_stride, of, of_stride, row, rows)
    target = _ffi.cast("char *", _ffi.from_buffer(to))
    source = _ffi.cast("char *", _ffi.from_buffer(of))
    if to_stride == of_stride == row:
        _libc.memcpy(target, source, row * rows)
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
