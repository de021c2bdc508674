"""The machine's moods: XenStore restarts, calls fail for a while, compositors die, monitors are unplugged."""

from __future__ import annotations

import errno
import os
import random

import trio
from sinks.compositor import FakeCompositor
from unit.drm_model import Board, Monitor

from .actor import Actor
from .faults import KINDS
from .world import World

__all__ = ["UnreliableCompositor", "UnreliableMachine", "UnreliableScreens"]


class UnreliableMachine(Actor):
    """An actor that lets the kernel, Xen and XenStore fail."""

    async def run(self) -> None:
        """Act until cancelled."""
        while True:
            await trio.sleep(self._chance.uniform(1, 8))
            await self._chance.choice((self._lose_xenstore, self._restart_xenstore, self._fail, self._fail))()

    async def _lose_xenstore(self) -> None:
        for _ in range(self._chance.choice((1, 1, 5))):
            self._note("XenStore closes the connection")
            self._world.xen.server.disconnect(0)
            await trio.sleep(self._chance.choice((0, 0.01, 0.5)))
        self._world.faults.ended_at = trio.current_time()

    async def _restart_xenstore(self) -> None:
        """XenStore's socket is away for a while."""
        path = self._world.xen.server.socket_of(0)
        away = path.with_suffix(".away")
        self._note("XenStore is away")
        os.rename(path, away)
        self._world.xen.server.disconnect(0)
        try:
            await self._world.faults.happen(set(), 0.0, self._chance.choice((0.1, 1, 4)))
        finally:
            os.rename(away, path)
            self._note("XenStore is back")

    async def _fail(self) -> None:
        kinds = set(self._chance.sample(KINDS, self._chance.choice((1, 1, 2))))
        share, seconds = self._chance.choice((0.1, 0.5, 1.0)), self._chance.choice((0.05, 1, 6))
        self._note(f"{', '.join(sorted(kinds))} fail: {share:.0%} for {seconds} s")
        await self._world.faults.happen(kinds, share, seconds)
        self._note("nothing fails")


class UnreliableCompositor(Actor):
    """An actor that is the compositor: it shows frames, hides and resizes windows, hangs, dies, and comes back."""

    def __init__(self, world: World, name: str, chance: random.Random, compositor: FakeCompositor) -> None:
        super().__init__(world, name, chance)
        self._compositor = compositor

    async def run(self) -> None:
        """Act until cancelled."""
        acts = (
            self._crash,
            self._hang,
            self._configure,
            self._configure,
            self._hide,
            self._keep,
            self._be_slow,
            self._close,
        )
        while True:
            await trio.sleep(self._chance.choice((0.05, 0.3, 1, 2)))
            act = self._chance.choice(acts)
            self._note(act.__name__.strip("_"))
            await act()

    async def _crash(self) -> None:
        self._compositor.crash()
        await trio.sleep(self._chance.choice((0, 0.05, 1, 3)))
        self._compositor.there = True

    async def _hang(self) -> None:
        there = [client for client in self._compositor.clients if not client.closed]
        for client in there:
            client.stopped = True
        await trio.sleep(self._chance.choice((0.1, 1, 4)))
        for client in there:
            client.stopped = False

    async def _configure(self) -> None:
        size = self._chance.choice(((0, 0), (64, 48), (100, 100), (1, 1), (1024, 768)))
        states = self._chance.choice(((), (1,), (2,), (4,), (9,)))
        for client in self._compositor.clients:
            for surface in list(client.surfaces.values()) if not client.closed else []:
                if surface.toplevel and surface.configured:
                    client.configure(surface, *size, states if size[0] else ())
        await trio.lowlevel.checkpoint()

    async def _close(self) -> None:
        """Close all windows, as their user does."""
        for client in self._compositor.clients:
            for surface in list(client.surfaces.values()) if not client.closed else []:
                if surface.toplevel:
                    client.event(surface.toplevel, "close")
        await trio.lowlevel.checkpoint()

    async def _hide(self) -> None:
        """Show nothing for a while."""
        self._compositor.shows_at_once = False
        await trio.sleep(self._chance.choice((0.1, 1, 3)))
        self._compositor.shows_at_once = True
        self._compositor.refresh()

    async def _keep(self) -> None:
        """Release no buffers for a while."""
        self._compositor.releases = False
        await trio.sleep(self._chance.choice((0.1, 1)))
        self._compositor.releases = True

    async def _be_slow(self) -> None:
        """Show frames at a slow refresh for a while."""
        self._compositor.shows_at_once = False
        for _ in range(self._chance.randrange(1, 12)):
            await trio.sleep(0.1)
            self._compositor.refresh()
        self._compositor.shows_at_once = True
        self._compositor.refresh()


class UnreliableScreens(Actor):
    """An actor that is a card with its monitors: they are unplugged, the card goes, another program becomes DRM master, calls fail."""

    def __init__(self, world: World, name: str, chance: random.Random, board: Board) -> None:
        super().__init__(world, name, chance)
        self._board = board

    async def run(self) -> None:
        """Act until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh)
            while True:
                await trio.sleep(self._chance.choice((0.05, 0.3, 1, 2)))
                act = self._chance.choice(
                    (self._unplug, self._lose_card, self._lose_master, self._fail, self._fail, self._slow)
                )
                self._note(act.__name__.strip("_"))
                try:
                    await act()
                finally:
                    self._world.faults.ended_at = trio.current_time()

    async def _refresh(self) -> None:
        """Refresh the screens 50 times a second."""
        while True:
            await trio.sleep(0.02)
            self._board.vblank()

    async def _unplug(self) -> None:
        index = self._chance.randrange(len(self._board.monitors))
        monitor, self._board.monitors[index] = self._board.monitors[index], None
        await trio.sleep(self._chance.choice((0.1, 1, 3)))
        self._board.monitors[index] = monitor or Monitor([(64, 48)])

    async def _lose_card(self) -> None:
        self._board.unbind()
        await trio.sleep(self._chance.choice((0.1, 1, 3)))
        self._board.present = True

    async def _lose_master(self) -> None:
        for card in self._board.cards:
            card.take_master()
        await trio.sleep(self._chance.choice((0.1, 1, 3)))
        self._board.other_master = False

    async def _fail(self) -> None:
        kind = self._chance.choice(("dumb", "probe", "flip", "modeset", "test", "rmfb"))
        self._board.faults[kind] = [
            self._chance.choice((errno.EINVAL, errno.ENOMEM, errno.EBUSY, errno.EACCES))
        ] * self._chance.choice((1, 3))
        await trio.lowlevel.checkpoint()

    async def _slow(self) -> None:
        """Show nothing for a while: late flips end by themselves."""
        await trio.sleep(0.1)
