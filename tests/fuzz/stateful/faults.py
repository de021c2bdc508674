"""Faults of the machine, switched on for a while: no files, no threads, errors of the hypervisor and of XenStore.

Only the daemon's calls fail, and none of those for the protected guest.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any, Final
from unittest.mock import patch

import trio

import displbe
from displbe.sim import store as sim_store
from displbe.sim.hypervisor import SimHypervisor
from displbe.sim.store import StoreFailure
from displbe.wire.xs import Op
from displbe.xen.port import HypervisorError

__all__ = ["KINDS", "Faults", "is_guest", "is_injected"]

KINDS: Final = ("files", "threads", "hypervisor", "store", "conflicts", "watches", "transactions")
"""Files and threads are used up; calls of the hypervisor fail; requests to XenStore fail; transactions have to be repeated; watches are
refused; transactions are refused."""
MARK: Final = "injected"
"""The text of an injected error."""
DISPLBE: Final = f"{Path(displbe.__file__).parent}/"
SIM: Final = f"{DISPLBE}sim/"
OPENERS: Final = ((os, "open"), (os, "dup"), (os, "memfd_create"), (os, "listdir"), (os, "pipe"), (builtins, "open"))
"""Functions that open a file. (os.eventfd is used by simulated devices only.)"""
REFUSALS: Final = {
    int(Op.WATCH): ("watches", "EQUOTA"),
    int(Op.TRANSACTION_START): ("transactions", "EQUOTA"),
    int(Op.TRANSACTION_END): ("conflicts", "EAGAIN"),
    int(Op.READ): ("store", "EIO"),
    int(Op.WRITE): ("store", "EIO"),
    int(Op.DIRECTORY): ("store", "EIO"),
    int(Op.GET_PERMS): ("store", "EIO"),
}
"""Kind and error of the requests to XenStore that fail."""


def is_injected(error: BaseException | None) -> bool:
    """Return whether an exception is the consequence of a fault."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in (errno.EMFILE, errno.ENOMEM, errno.EAGAIN):
            return True
        if MARK in str(one) or str(one) in ("EIO", "EQUOTA", "EAGAIN", "can't start new thread"):
            return True
        todo += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
    return False


GUESTS: Final = (b"domain", b"vdispl", b"vinput")
"""The directories above those of guests."""

is_guest: Final = ContextVar("is_guest", default=False)
"""Whether a task is part of a guest. Guests use displbe's client of XenStore, too."""


class Faults:
    """The faults of a run. `protected` is the domain whose memory and ports never fail."""

    def __init__(self, chance: random.Random, protected: int) -> None:
        self.chance = chance
        self.share = 0.0
        """The share of calls that fail while a kind is active."""
        self.ended_at = float("-inf")
        """When the last fault ended, in seconds of trio's clock."""
        self._protected = protected
        self._active: set[str] = set()

    @property
    def active(self) -> bool:
        """Whether any fault is active."""
        return bool(self._active)

    async def happen(self, kinds: set[str], share: float, seconds: float) -> None:
        """Let these kinds of calls fail for a while."""
        self._active, self.share = kinds, share
        try:
            await trio.sleep(seconds)
        finally:
            self._active = set()
            self.ended_at = trio.current_time()

    def fails(self, kind: str) -> bool:
        """Return whether a call of this kind fails now."""
        # Not every transaction is in conflict: somebody else has succeeded then.
        share = min(self.share, 0.5) if kind == "conflicts" else self.share
        return kind in self._active and self.chance.random() < share

    def no_thread(self) -> bool:
        """Return whether the daemon cannot start a thread now."""
        return "threads" in self._active and _is_the_daemons() and self.fails("threads")

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Let the daemon's calls fail while the block lasts."""
        with contextlib.ExitStack() as stack:
            for module, name in OPENERS:
                stack.enter_context(patch.object(module, name, self._opener(getattr(module, name))))
            stack.enter_context(patch.object(socket.socket, "__init__", self._socket(socket.socket.__init__)))
            stack.enter_context(patch.object(trio.SocketListener, "accept", self._accept(trio.SocketListener.accept)))
            for name in ("map_page", "bind", "map_buffer", "share_dmabuf"):
                stack.enter_context(patch.object(SimHypervisor, name, self._call(getattr(SimHypervisor, name))))
            for op, (kind, error) in REFUSALS.items():
                handler = sim_store._HANDLERS[op]
                stack.enter_context(patch.dict(sim_store._HANDLERS, {op: self._request(handler, kind, error)}))
            yield

    def _no_file(self) -> bool:
        return "files" in self._active and _is_the_daemons() and self.fails("files")

    def _opener(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def opened(*arguments: Any, **keys: Any) -> Any:
            if self._no_file():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return function(*arguments, **keys)

        return opened

    def _socket(self, function: Callable[..., None]) -> Callable[..., None]:
        def made(this: socket.socket, *arguments: Any, **keys: Any) -> None:
            is_new = keys.get("fileno") is None and len(arguments) < 4  # the fourth argument is a file that is open
            if is_new and self._no_file():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            function(this, *arguments, **keys)

        return made

    def _accept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def accepted(this: trio.SocketListener) -> Any:
            if self._no_file():
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return await function(this)

        return accepted

    def _call(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(this: SimHypervisor, domid: int, *arguments: Any, **keys: Any) -> Any:
            if this.domain.domid == 0 and domid != self._protected and self.fails("hypervisor"):
                number = self.chance.choice((errno.ENOMEM, errno.EINVAL, errno.ENOSPC))
                raise HypervisorError(number, f"{function.__name__}: {MARK}")
            return function(this, domid, *arguments, **keys)

        return called

    def _is_protected(self, kind: str, payload: bytes) -> bool:
        """Return whether the request is about the protected guest. An error that is not to be tried again would end its connection."""
        return kind == "store" and any(b"%s/%d/" % (name, self._protected) in payload for name in GUESTS)

    def _request(self, function: Callable[..., bytes], kind: str, error: str) -> Callable[..., bytes]:
        def asked(this: sim_store.Connection, transaction: Any, packet: Any) -> bytes:
            if this.domid == 0 and not self._is_protected(kind, packet.payload) and self.fails(kind):
                if packet.op == Op.TRANSACTION_END:
                    this.transactions.pop(packet.transaction_id, None)
                raise StoreFailure(error)
            return function(this, transaction, packet)

        return asked


def _is_the_daemons() -> bool:
    """Return whether the daemon makes the present call, and not a simulated guest, or the simulated Xen for itself."""
    if is_guest.get():
        return False
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(DISPLBE):
            return not name.startswith(SIM)
        frame = frame.f_back
    return False
