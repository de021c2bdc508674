"""The worlds that the suite runs in, and what its tests use.

They are the simulated Xen on any machine, and the real one with DISPLBE_HOST=1, in a Dom0 that is used for nothing else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

import trio
from conformance.peer import Peer

from displbe.xen.port import Abilities, Hypervisor, Store

__all__ = ["HOST", "WORLDS", "Listener", "World", "descriptors", "fitting"]

HOST: Final = os.environ.get("DISPLBE_HOST") == "1"
WORLDS: Final[dict[str, Abilities]] = (
    {"host": Abilities(True, True)}
    if HOST
    else {"sim": Abilities(False, True), "sim without dma-bufs": Abilities(False, False)}
)
"""The worlds of this run, with the abilities that they must have. The lab's kernel can export and import dma-bufs."""


def fitting(test: Callable[..., Any]) -> list[str]:
    """Return the worlds of this run that have the abilities that a test is marked with."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "abilities"]
    wanted: dict[str, bool] = {key: value for mark in marks for key, value in mark.kwargs.items()}
    return [name for name, has in WORLDS.items() if all(getattr(has, key) is wanted[key] for key in wanted)]


def descriptors() -> int:
    """Return the number of open files, without the memory of simulated domains, which is freed with its last reference."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the fd of the listing itself
            found += not os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:dom")
    return found


class World:
    """A hypervisor, another domain, and a directory in XenStore to write."""

    def __init__(self, hypervisor: Hypervisor, peer: Peer, home: str, store_path: str) -> None:
        self.hypervisor = hypervisor
        self.peer = peer
        self.store_path = store_path
        """XenStore's socket or device in our domain, for other clients than displbe's."""
        self.home = home
        """A path relative to our domain's home."""

    @property
    def store(self) -> Store:
        """XenStore."""
        return self.hypervisor.store


class Listener:
    """The callback of a bound channel. It counts its calls, and does not rearm the port."""

    def __init__(self) -> None:
        self.calls = 0
        self.more: Callable[[], bool] = lambda: False
        """Returns the callback's result."""
        self.then: Callable[[], None] = lambda: None
        """Called by each call."""
        self._called = trio.Event()

    def __call__(self) -> bool:
        self.calls += 1
        self._called.set()
        self.then()
        return self.more()

    async def called(self, times: int) -> None:
        """Wait until it has been called this many times in all."""
        with trio.fail_after(5):
            while self.calls < times:
                self._called = trio.Event()
                await self._called.wait()

    async def quiet(self, times: int) -> None:
        """Check that it is not called more often than that."""
        await trio.sleep(0.05)
        assert self.calls == times
