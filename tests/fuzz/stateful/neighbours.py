"""Guests that behave well. They see whether the daemon does."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import trio
from memory_watch import content

from displbe.sim.guest import FrontConnector, Frontend, Guest, GuestFailure
from displbe.sim.toolstack import ConnectorSpec
from displbe.sinks.headless.output import HeadlessOutput
from displbe.wire.displif import PageFlip
from displbe.xen.port import StoreError, StoreLost

from .actor import Actor
from .faults import is_guest
from .virtual import Steps
from .world import GOOD, World, WrongBehaviour

__all__ = ["Neighbour"]

SIZE: Final = (64, 48)
CONNECT: Final = 10.0
"""Seconds in which a guest must be connected."""
FLIP: Final = 1.0
"""Seconds in which a flip must end: below the 3.1 s of Linux' frontend, and above the 0.5 s after which a late flip ends."""
ANSWER: Final = 6000
"""Steps of all tasks within which a flip must be answered. Half of a storm's notifications of all other guests are fewer."""


class Neighbour(Actor):
    """A guest that flips between two buffers of one connector while others misbehave."""

    def __init__(self, world: World, name: str, chance: random.Random, steps: Steps) -> None:
        super().__init__(world, name, chance)
        self._steps = steps
        self._domid = 0
        self._output = ""
        self._lives = 0
        self.flips = 0

    @property
    def _guest_name(self) -> str:
        """The guest's name: another one in each life, because what an operator does to a guest outlives it."""
        return self._name if self._domid == GOOD else f"{self._name}-{self._lives}"

    @property
    def _excused(self) -> bool:
        """Whether something else than a fault of the daemon may keep this guest from its screen."""
        world = self._world
        return self._domid != GOOD and (
            world.faults.active
            or world.limits_changed
            or trio.current_time() - world.faults.ended_at < CONNECT
            or bool({self._guest_name, str(self._domid)} & world.touched)
        )

    async def run_protected(self, flipping: trio.Event) -> None:
        """Be the guest that nothing happens to, until cancelled. The event is set when it flips."""
        is_guest.set(True)
        self._domid, self._output = GOOD, "good-screen"
        async with self._booted() as guest:
            await self._connected(guest.display)
            await self._flip(guest.display, lambda: False, flipping.set)

    async def run(self) -> None:
        """Come, flip, and go, again and again, until cancelled."""
        is_guest.set(True)
        while True:
            self._domid = self._world.new_domid(self._chance)
            self._output = self._chance.choice((f"{self._name}-screen", "shared-0", "shared-1"))
            await self.live(self._chance.choice((0.2, 1.0, 4.0)))
            await trio.sleep(self._chance.uniform(0, 1))

    async def live(self, seconds: float) -> None:
        """Be a guest for a while."""
        self._lives += 1
        self._note(f"domain {self._domid} on {self._output}")
        async with self._booted() as guest:
            if await self._connected(guest.display):
                until = trio.current_time() + seconds
                await self._flip(guest.display, lambda: trio.current_time() > until, lambda: None)
        self._note(f"domain {self._domid} ends")

    async def works(self) -> None:
        """Check that a new guest is served. Raises WrongBehaviour."""
        self._domid, self._output = self._world.new_domid(self._chance), f"{self._name}-screen"
        flips = self.flips
        await self.live(0.5)
        if self.flips == flips:
            raise WrongBehaviour("a new guest is not served")

    # The guest's kernel

    @contextlib.asynccontextmanager
    async def _booted(self) -> AsyncIterator[Guest]:
        """Run a domain with a display and a keyboard. Raises WrongBehaviour when the backend still maps a page that it has given back."""
        world, domid = self._world, self._domid
        await world.create_domain(domid, self._guest_name)
        guest = Guest(world.xen, domid)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(guest.hypervisor.run)
                keyboard = self._output if world.settings.sink == "wayland" else "/dev/input/event0"
                world.tools.add_input(domid, {"unique-id": f"K:{keyboard};P:{keyboard}"})
                world.tools.add_display(domid, [ConnectorSpec(world.screen(self._output), *SIZE)])
                nursery.start_soon(self._drive, guest.display.run)
                nursery.start_soon(self._drive, guest.input.run)
                yield guest
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await world.destroy(domid)

    async def _drive(self, driver: Callable[[], Awaitable[None]]) -> None:
        try:
            await driver()
        except AssertionError as error:
            if self._domid in self._world.meddled:  # the toolstack has overwritten the backend's state
                return
            raise WrongBehaviour(f"{self._name}, domain {self._domid}: {error}") from error
        except (StoreError, StoreLost):
            if not self._excused:
                raise

    async def _connected(self, display: Frontend) -> bool:
        """Wait for the connection. Return False when something else keeps the guest from it. Raises WrongBehaviour."""
        with trio.move_on_after(CONNECT):
            await display.connected.wait()
        if display.connected.is_set():
            return True
        owner = self._world.daemon.sink.claimed(self._world.screen(self._output))
        if self._excused or (owner is not None and self._output.startswith("shared")):
            return False
        error = self._world.tools.read(f"{self._world.tools.back(self._domid)}/error")
        raise WrongBehaviour(f"{self._name}, domain {self._domid} is not connected after {CONNECT:.0f} s: {error!r}")

    async def _flip(self, display: Frontend, over: Callable[[], bool], flipping: Callable[[], None]) -> None:
        """Flip until it is over. Connect again when the connection has ended. Raises WrongBehaviour."""
        while not over():
            if not await self._connected(display):
                return
            connectors = display.connectors
            try:
                await self._one_connection(display, over, flipping)
            except (GuestFailure, trio.TooSlowError, trio.ClosedResourceError) as error:
                if self._domid == GOOD or not (self._excused or display.connectors is not connectors):
                    raise WrongBehaviour(f"{self._name}, domain {self._domid}: {error or 'no answer'}") from error
                self._note(f"domain {self._domid} begins again")
                await trio.sleep(0.1)

    async def _one_connection(self, display: Frontend, over: Callable[[], bool], flipping: Callable[[], None]) -> None:
        drawn: list[tuple[int, bytes]] = []
        for _ in range(2):
            _, fb, buffer = await display.create_framebuffer(*SIZE)
            colour = self._chance.randbytes(3) + b"\0"
            buffer.pixels[:] = colour * (SIZE[0] * SIZE[1])
            drawn.append((fb, colour))
        await display.show(0, drawn[0][0], *SIZE)
        connector = display.connectors[0]
        while not over():
            fb, colour = drawn[self.flips % 2]
            await self._flip_once(connector, fb)
            self.flips += 1
            self._check_picture(colour)
            flipping()
            await trio.sleep(self._chance.choice((0, 0, 0.05, 0.2)))

    async def _flip_once(self, connector: FrontConnector, fb: int) -> None:
        steps, begun = self._steps.count, trio.current_time()
        done = len(connector.flips_done)
        await connector.order(PageFlip(0, fb))
        took = self._steps.count - steps
        if took > ANSWER:
            raise WrongBehaviour(
                f"{self._name}, domain {self._domid}: its flip was answered after {took} steps of all tasks"
            )
        with trio.fail_after(FLIP):
            while len(connector.flips_done) == done:
                await connector._flipped.wait()
        if trio.current_time() - begun > FLIP:
            raise WrongBehaviour(
                f"{self._name}, domain {self._domid}: its flip was answered after {trio.current_time() - begun:.1f} s"
            )

    def _check_picture(self, colour: bytes) -> None:
        """Check that the screen shows the frame. Raises WrongBehaviour."""
        output = self._world.daemon.sink.claimed(self._world.screen(self._output))
        if self._excused or not isinstance(output, HeadlessOutput):
            return
        shown = b""
        if output._shown is not None:
            shown = content(output._shown.memory, 0, 4)
        if shown != colour:
            what = shown.hex() or "nothing"
            raise WrongBehaviour(
                f"{self._name}, domain {self._domid}: its screen shows {what} in place of {colour.hex()}"
            )
