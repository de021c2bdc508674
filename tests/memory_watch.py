"""Watches displbe's memory during a test, as AddressSanitizer does, and finds heavy system calls in the event loop.

While a test runs, memory that displbe unmaps stays reserved, without any access (`PROT_NONE`), and is not used again. An access to it ends
the process by SIGSEGV, and pytest's faulthandler prints the place, in every thread. Without that, such an access could read what is mapped
there next, and go unnoticed. Borrowers (`Mapping.borrow`) are counted: a view that outlives its block is a violation, with the place of
the block. So is memory of displbe's that is never unmapped.

A heavy call (unmapping more than a page, the last close of a dma-buf or of a gntdev file, an ioctl that grants or removes a whole buffer)
is a violation when it is made in the thread of the event loop. The thread decides, not the time that the call takes.

The code of displbe is the same with and without the watch: only `munmap`, `os.close` and `Loan` are replaced.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import trio

import displbe
from displbe.xen import memory
from displbe.xen._libc import ffi

__all__ = ["MemoryWatch", "content", "heavy", "watched"]

DISPLBE: Final = f"{Path(displbe.__file__).parent}/"
TESTS: Final = f"{Path(__file__).parent}/"
PASSED_THROUGH: Final = (
    f"{DISPLBE}xen/memory.py",
    f"{TESTS}memory_watch.py",
    f"{TESTS}hostile/kernel.py",
    f"{TESTS}unit/test_gntdev.py",
    f"{TESTS}unit/drm_model.py",
)
"""Files that make a call for somebody else: memory.py, and the tests' kernels."""
SIMULATED: Final = f"{TESTS}fuzz/stateful/virtual.py"
QUARANTINE: Final = 8192
"""The number of unmapped ranges that stay reserved. A process may have 65,530 (vm.max_map_count)."""
_NO_ACCESS: Final = 0
_RESERVED: Final = 0x4032
"""MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE"""
SMALL_FILE: Final = 1 << 18
"""Bytes of a file that may be freed in the event loop. A compositor's keymaps and tables of formats are smaller."""
HEAVY_FILES: Final = ("/dev/xen/gntdev", "/memfd:gntdev", "/dmabuf", "/memfd:dma-buf", "anon_inode:dmabuf")
"""Files whose last close gives a buffer's pages back; also those that stand for them in tests."""


def _place() -> tuple[str, bool]:
    """Return the file and line that the present call is made for, and whether they are displbe's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith((DISPLBE, TESTS)) and name not in PASSED_THROUGH:
            ours = name.startswith(DISPLBE) and not name.startswith(f"{DISPLBE}sim/")
            return f"{name.removeprefix(DISPLBE).removeprefix(TESTS)}:{frame.f_lineno}", ours
        frame = frame.f_back
    return "unknown", False


def _without_thread() -> bool:
    """Return whether the present call is made here because no thread could be started (`run_in_thread_or_here`), or because threads are
    simulated in the loop (fuzz/stateful/virtual.py).
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "run_in_thread_or_here" or (code.co_name == "work" and code.co_filename == SIMULATED):
            return True
        frame = frame.f_back
    return False


def _is_open_elsewhere(fd: int) -> bool:
    """Return whether this process has another file descriptor of the file."""
    file = os.fstat(fd)
    for other in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if other != fd and os.path.samestat(file, os.fstat(other)):
                return True
    return False


class MemoryWatch:
    """The findings about one test."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.closed_while_borrowed: list[str] = []
        """Where memory was closed that was borrowed at that moment. The last borrower unmaps it, so this is no violation."""
        self.unmapped = 0
        """The number of ranges that were unmapped."""
        self.open: dict[int, str] = {}
        """The place where each mapping of displbe's was made that is not unmapped, by its address."""
        self.lent: set[int] = set()
        """The addresses of memory that has been borrowed."""
        self._quarantine: deque[tuple[Any, int]] = deque()
        self._lock = threading.RLock()
        self._munmap = memory._libc.munmap
        self._mmap = memory._libc.mmap
        self._close = os.close
        self._own = memory.Mapping._own
        self._close_mapping = memory.Mapping.close

    # In place of displbe's calls

    def munmap(self, address: Any, size: int) -> int:
        """munmap(2), but the range stays reserved, and every access to it ends the process."""
        number = int(ffi.cast("uintptr_t", address))
        # A sink's memory that has never been borrowed has no pages yet.
        is_empty = number not in self.lent and self.open.get(number, "").startswith("sinks/")
        if size > memory.PAGE_SIZE and not is_empty:
            self.heavy(f"munmap of {size} bytes")
        with self._lock:
            self.open.pop(number, None)
            self.unmapped += 1
            if self._mmap(address, size, _NO_ACCESS, _RESERVED, -1, 0) == memory._FAILED:
                return int(self._munmap(address, size))
            self._quarantine.append((address, size))
            if len(self._quarantine) > QUARANTINE:
                self._munmap(*self._quarantine.popleft())
        return 0

    def close(self, fd: int) -> None:
        """close(2)"""
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{fd}")
            is_filled = name.startswith("/memfd:") and 512 * os.fstat(fd).st_blocks > SMALL_FILE
            if (is_filled or name.startswith(HEAVY_FILES)) and not _is_open_elsewhere(fd):
                self.heavy(f"close of {name}")
        self._close(fd)

    def heavy(self, call: str) -> None:
        """Take note of a heavy call of displbe's: a violation if it is made in the event loop."""
        if not trio.lowlevel.in_trio_run():
            return
        place, ours = _place()
        if ours and not _without_thread():
            self.violations.append(f"{call} in the event loop, at {place}")

    def own(self, mapping: memory.Mapping, address: Any, size: int, writable: bool) -> None:
        """Mapping._own"""
        place, ours = _place()
        if ours:
            with self._lock:
                self.open[int(ffi.cast("uintptr_t", address))] = place
        self._own(mapping, address, size, writable)

    def close_mapping(self, mapping: memory.Mapping, wait: float = 0.0) -> bool:
        """Mapping.close"""
        if mapping.borrowers:
            self.closed_while_borrowed.append(_place()[0])
        return self._close_mapping(mapping, wait)

    def end(self) -> None:
        """Free the ranges. Memory that is still mapped is a violation."""
        self.violations += [f"never unmapped: memory made at {place}" for place in self.open.values()]
        for address, size in self._quarantine:
            self._munmap(address, size)
        self._quarantine.clear()


_watches: Final[list[MemoryWatch]] = []
"""The watch of the present test."""


def heavy(call: str) -> None:
    """Take note of a heavy call: the kernels of tests call this for each heavy ioctl."""
    for watch in _watches:
        watch.heavy(call)


class _WatchedLoan(memory.Loan):
    """A loan whose views must be gone at the end of its block."""

    __slots__ = ("_lent", "_place")

    def __enter__(self) -> memoryview:
        view = super().__enter__()
        self._lent = weakref.ref(view.obj)
        self._place = _place()[0]
        for watch in _watches:
            watch.lent.add(int(ffi.cast("uintptr_t", ffi.from_buffer(view))))
        return view

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._lent() is not None and not any(error):  # a traceback may hold a view until the exception is handled
            for watch in _watches:
                watch.violations.append(f"a view outlives its block, at {self._place}")


class _Libc:
    """The C library, with another munmap."""

    def __init__(self, libc: Any, watch: MemoryWatch) -> None:
        self.mmap, self.memcpy, self.memcmp = libc.mmap, libc.memcpy, libc.memcmp
        self.munmap = watch.munmap


@contextlib.contextmanager
def watched() -> Iterator[MemoryWatch]:
    """Watch displbe's memory while the block lasts. The caller looks at the violations after the block."""
    watch = MemoryWatch()

    def own(mapping: memory.Mapping, address: Any, size: int, writable: bool) -> None:
        watch.own(mapping, address, size, writable)

    def close(mapping: memory.Mapping, wait: float = 0.0) -> bool:
        return watch.close_mapping(mapping, wait)

    with (
        patch.object(memory, "_libc", _Libc(memory._libc, watch)),
        patch.object(memory, "Loan", _WatchedLoan),
        patch.object(memory.Mapping, "_own", own),
        patch.object(memory.Mapping, "close", close),
        patch.object(os, "close", watch.close),
    ):
        _watches.append(watch)
        try:
            yield watch
        finally:
            _watches.remove(watch)
            watch.end()


def content(mapping: memory.Memory, start: int = 0, size: int | None = None) -> bytes:
    """Return a copy of a part of some memory; `size` None: up to its end."""
    with mapping.borrow() as view:
        return bytes(view[start:]) if size is None else bytes(view[start : start + size])
