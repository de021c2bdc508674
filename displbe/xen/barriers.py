"""Shared memory with the accesses that rings need: acquire, release, full fence.

Python has no memory barriers. libatomic exports the compiler's atomic operations as functions, which cffi calls without a compiler.
Arm, the main target, needs all of them. x86 needs the fence: it may reorder a store with a later load, which would break the ring's
final check.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ._libatomic import ffi
from .port import Unavailable

__all__ = ["MissingLibatomic", "SharedMemory", "ffi", "libatomic"]

ACQUIRE: Final = 2
RELEASE: Final = 3
SEQ_CST: Final = 5


class MissingLibatomic(Unavailable):
    """libatomic.so.1 is not installed."""


def _open() -> Any:
    try:
        return ffi.dlopen("libatomic.so.1")
    except OSError as error:
        raise MissingLibatomic("libatomic.so.1 is missing; on Debian, install the package libatomic1") from error


libatomic: Final = _open()
_load = libatomic.__atomic_load_4
_store = libatomic.__atomic_store_4
_fence = libatomic.atomic_thread_fence


ORDERED: Final = platform.machine() == "x86_64"
"""Whether plain accesses of a whole word have acquire and release semantics.

x86 reorders neither a load with a later access nor a store with an earlier one. CPython reads and writes an item of a memoryview
with one such access, which costs a fifth of a call through cffi.
"""


class SharedMemory:
    """Memory that another domain writes at the same time: `wire.ring.SharedPage` over a buffer.

    On read-only memory, `load` and `copy` work.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("I")
        self.words = self._words if ORDERED else None
        """SharedPage.words"""
        self.fence: Callable[[], None] = partial(_fence, SEQ_CST)
        """Issues a full barrier."""
        # A plain address, which does not keep the buffer alive: the owner unmaps it after `forget`.
        self._base: Any = ffi.cast("char *", ffi.from_buffer(memory))

    def forget(self) -> None:
        """Drop the memory before it is unmapped, so that later accesses raise instead of faulting."""
        self._base = None
        self._words.release()
        self._memory = memoryview(b"")

    @property
    def address(self) -> Any:
        """The address of the memory (`char *`). It does not keep the memory mapped."""
        return self._base

    def load(self, offset: int) -> int:
        """Return the u32 at an offset in bytes, with acquire semantics."""
        if ORDERED:
            return self._words[offset >> 2]
        loaded: int = _load(self._base + offset, ACQUIRE)
        return loaded

    def store(self, offset: int, value: int) -> None:
        """Write a u32 at an offset in bytes, with release semantics."""
        if ORDERED:
            self._words[offset >> 2] = value
        else:
            _store(self._base + offset, value, RELEASE)

    def copy(self, offset: int, size: int) -> bytes:
        """Return a private copy of `size` bytes."""
        return self._memory[offset : offset + size].tobytes()

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes at an offset."""
        self._memory[offset : offset + len(data)] = data
