"""The worlds of the suite: the simulated Xen anywhere, and the real one where DISPLBE_HOST=1 says that this is a Dom0 for tests."""

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
"""The worlds of this run, with the abilities that they must have. The lab's kernel has both kinds of dma-bufs."""


def fitting(test: Callable[..., Any]) -> list[str]:
    """Return the worlds of this run that have the abilities in a test's mark."""
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "abilities"]
    wanted: dict[str, bool] = {key: value for mark in marks for key, value in mark.kwargs.items()}
    return [name for name, has in WORLDS.items() if all(getattr(has, key) is wanted[key] for key in wanted)]


def descriptors() -> int:
    """Return the number of open files, without the memory of simulated domains, which is released when it is no longer referenced."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory that is being listed
            found += not os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:dom")
    return found


class World:
    """A hypervisor, a peer domain, and a directory in XenStore to write to."""

    def __init__(self, hypervisor: Hypervisor, peer: Peer, home: str) -> None:
        self.hypervisor = hypervisor
        self.peer = peer
        self.home = home
        """A path relative to our domain's home."""

    @property
    def store(self) -> Store:
        """XenStore."""
        return self.hypervisor.store


class Listener:
    """A bound channel's callback that counts its calls. It rearms the channel only when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.more: Callable[[], bool] = lambda: False
        """What the callback returns."""
        self.then: Callable[[], None] = lambda: None
        """What it does."""
        self._called = trio.Event()

    def __call__(self) -> bool:
        self.calls += 1
        self._called.set()
        self.then()
        return self.more()

    async def called(self, times: int) -> None:
        """Wait until it has been called this number of times in all."""
        with trio.fail_after(5):
            while self.calls < times:
                self._called = trio.Event()
                await self._called.wait()

    async def quiet(self, times: int) -> None:
        """Check that it is not called more often than that."""
        await trio.sleep(0.05)
        assert self.calls == times
