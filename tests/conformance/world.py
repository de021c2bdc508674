"""What a test of the suite gets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import trio
from conformance.peer import Peer

from displbe.xen.port import Hypervisor, Store

__all__ = ["Listener", "World", "descriptors"]


def descriptors() -> int:
    """How many files this process has open, but for the memory of simulated domains: that goes when nobody looks at it any more."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found += not os.readlink(f"/proc/self/fd/{number}").startswith("/memfd:dom")
    return found


class World:
    """A hypervisor, a domain to talk to, and a place in XenStore to write."""

    def __init__(self, hypervisor: Hypervisor, peer: Peer, home: str) -> None:
        self.hypervisor = hypervisor
        self.peer = peer
        self.home = home
        """Relative to our domain's home."""

    @property
    def store(self) -> Store:
        """XenStore."""
        return self.hypervisor.store


class Listener:
    """A bound channel's callback that counts its calls. It rearms only when told to."""

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
        """Wait until it has been called so many times in all."""
        with trio.fail_after(5):
            while self.calls < times:
                self._called = trio.Event()
                await self._called.wait()

    async def quiet(self, times: int) -> None:
        """Make sure that it is not called more often than that."""
        await trio.sleep(0.05)
        assert self.calls == times
