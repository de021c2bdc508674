"""No more files, threads or memory, at places that a test chooses.

Each call that may fail for lack of a resource is counted by its place, which is the lines of displbe on the stack. A test can let one place
fail once, as the kernel would. The calls of the simulated Xen are not counted: in reality they are made by other processes.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import pytest
import trio
from hostile.kernel import Fault, Places

from displbe import threads
from displbe.xen import memory

__all__ = ["KINDS", "Shortages"]


def _file(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def _memory(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def _thread(*_: object, **__: object) -> None:
    raise RuntimeError("can't start new thread")


KINDS: Final[dict[str, Callable[..., None]]] = {
    "open": _file,
    "dup": _file,
    "memfd_create": _file,
    "listdir": _file,
    "scandir": _file,
    "io.open": _file,
    "socket": _file,
    "ftruncate": _memory,
    "mmap": _memory,
    "thread": _thread,
    "worker": _thread,
}
"""The calls that are counted, and their failures."""


class Shortages(Places):
    """The calls of displbe that need a resource."""

    def __init__(self, patch: pytest.MonkeyPatch, wanted: Fault | None = None) -> None:
        super().__init__(wanted)
        for name in ("open", "dup", "memfd_create", "listdir", "scandir", "ftruncate"):
            self._replace(patch, os, name, name)
        self._replace(patch, io, "open", "io.open")
        self._replace(patch, memory, "_mmap", "mmap")
        self._replace(patch, socket.socket, "__init__", "socket")
        self._replace(patch, threading.Thread, "start", "thread")
        run_sync = trio.to_thread.run_sync

        async def counted(*arguments: Any, **names: Any) -> Any:
            self._count("worker")  # trio keeps threads for a while, so that most calls start none
            return await run_sync(*arguments, **names)

        class ToThread:
            run_sync = staticmethod(counted)

        class Trio:
            to_thread = ToThread

        patch.setattr(threads, "trio", Trio)

    def _replace(self, patch: pytest.MonkeyPatch, owner: Any, name: str, call: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **names: Any) -> Any:
            is_open = call in ("io.open", "socket") and (
                isinstance(arguments[0], int) or names.get("fileno") is not None
            )
            if not is_open:
                self._count(call)
            return real(*arguments, **names)

        patch.setattr(owner, name, counted)

    def _count(self, call: str) -> None:
        """Count a call of displbe. Raises the call's failure when it is the wanted one."""
        if not self.armed:
            return
        lines = self._lines()
        callers = [line for line in lines if not line.startswith("xen/memory.py:")]
        if not callers or callers[0].startswith(("sim/", "xen/")):  # test_faults covers displbe's calls for Xen
            return
        if self._fails(Fault(call, tuple(lines))):
            KINDS[call]()
