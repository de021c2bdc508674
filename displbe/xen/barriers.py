"""Shared memory with the accesses that rings need: acquire, release, full fence.

Python has no barriers. libatomic exports the compiler's atomic operations as functions; cffi calls them without a compiler.
On Arm, the main target, nothing else will do; and on x86 a store may still pass a later load, which is what the ring's final
check must not see.
"""

from __future__ import annotations

import platform
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
"""x86 never passes a load with a later access, nor an earlier access with a store: a plain access of a whole word is enough, which
is what CPython makes of an item of a memoryview, and costs a fifth of a call through cffi.
"""


class SharedMemory:
    """Memory that someone else writes at the same time: what `wire.ring.SharedPage` asks for, over a buffer.

    Read-only memory can be copied from and loaded from.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory.cast("I")
        # A bare address: it keeps no hold on the memory, which the owner unmaps after `forget`.
        self._base: Any = ffi.cast("char *", ffi.from_buffer(memory))

    def forget(self) -> None:
        """The memory is about to go: later accesses raise instead of faulting."""
        self._base = None
        self._words.release()
        self._memory = memoryview(b"")

    def load(self, offset: int) -> int:
        """A u32 at an octet offset, with acquire semantics."""
        if ORDERED:
            return self._words[offset >> 2]
        loaded: int = _load(self._base + offset, ACQUIRE)
        return loaded

    def store(self, offset: int, value: int) -> None:
        """Write a u32 at an octet offset with release semantics."""
        if ORDERED:
            self._words[offset >> 2] = value
        else:
            _store(self._base + offset, value, RELEASE)

    def fence(self) -> None:
        """A full barrier."""
        _fence(SEQ_CST)

    def copy(self, offset: int, size: int) -> bytes:
        """A private copy of `size` octets."""
        return self._memory[offset : offset + size].tobytes()

    def write(self, offset: int, data: bytes) -> None:
        """Write octets."""
        self._memory[offset : offset + len(data)] = data
