"""Guests that do as they like: honest drivers, driver bugs, and attacks, in any order."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from displbe.sim.guest import FrontConnector, Frontend, Guest
from displbe.sim.input import InputFrontend
from displbe.sim.toolstack import ConnectorSpec
from displbe.wire.displif import DbufDestroy, FbDetach, GetEdid, PageFlip, Request, SetConfig
from displbe.wire.xenbus import State

from .actor import Actor
from .faults import is_guest
from .requests import Memory, honest, put, random_requests
from .world import World

__all__ = ["HostileGuest"]

NAMES: Final = ("", "", "alpha", "alpha", "beta", "3", "7", "a" * 200, "\x1b[2J", "é", "{guest}", "..", "-")
"""Names of guests; some are those of others, or numbers."""
NODES: Final = (
    *("state", "state", "state", "req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel", "unique-id"),
    *("resolution", "be-alloc", "backend", "backend-id", "0", "1", "2", "versions", "page-ref", "page-gref", "event-channel"),
    *("request-abs-pointer", "request-multi-touch", "a", "00", "01", "-1", "4294967296", "state/state", "0/state"),
)  # fmt: skip
"""Nodes below a device's directory."""
VALUES: Final = (
    *(b"", b"0", b"1", b"2", b"3", b"4", b"4", b"5", b"6", b"7", b"8", b"9", b"-1", b"03", b" 4", b"4\0", b"4294967295"),
    *(b"4294967296", b"x", b"\xff\xfe", b"9" * 400, b"64x48", b"0x0", b"99999x99999", b"shared-0", b"/local/domain/0", b"..\n"),
)  # fmt: skip
"""Values of nodes."""


class HostileGuest(Actor):
    """An actor that lives as one guest after the other. Its own failures are no faults: it provokes them."""

    def __init__(self, world: World, name: str, chance: random.Random) -> None:
        super().__init__(world, name, chance)
        self._domid = 0
        self._guest: Guest
        self._memory: Memory
        self._displays: list[Frontend] = []
        self._inputs: list[InputFrontend] = []
        self._scopes: dict[int, trio.CancelScope] = {}
        """Cancelled to end the driver of a display, by the display's number."""
        self._nursery: trio.Nursery
        self._acts: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (6, self._honest),
            (8, self._requests),
            (4, self._flips_and_detaches),
            (2, self._raw_ring),
            (2, self._raw_events),
            (3, self._storm),
            (3, self._spoil),
            (3, self._write_node),
            (1, self._remove_node),
            (1, self._state_machine),
            (2, self._reload_driver),
            (5, self._change_rings),
            (2, self._input),
            (2, self._silence),
        ]

    async def run(self) -> None:
        """Live until cancelled."""
        is_guest.set(True)
        while True:
            await self._live()
            await trio.sleep(self._chance.uniform(0, 0.5))

    async def _live(self) -> None:
        chance, world = self._chance, self._world
        domid = self._domid = world.new_domid(chance)
        vdispls = chance.choice((0, 1, 1, 1, 1, 2, 3))
        vkbs = chance.choice((0, 0, 1, 1, 2))
        self._note(f"domain {domid}: {vdispls} displays, {vkbs} inputs")
        try:
            await world.create_domain(domid, chance.choice(NAMES))
            self._guest = Guest(world.xen, domid)
            self._memory = Memory(self._guest.domain, chance)
            async with trio.open_nursery() as self._nursery:
                await self._nursery.start(self._guest.hypervisor.run)
                self._displays = [self._new_display(number) for number in range(vdispls)]
                self._inputs = [self._new_input(number) for number in range(vkbs)]
                await trio.sleep(chance.choice((0, 0.01, 0.2, 0.3)))
                for _ in range(chance.choice((1, 10, 30, 60))):
                    await self._act()
                    await trio.sleep(chance.choice((0, 0, 0.001, 0.01, 0.05, 0.1)))
                if chance.random() < 0.3:
                    self._die_within_a_request()
                self._nursery.cancel_scope.cancel()
        finally:
            self._note(f"domain {domid} ends")
            with trio.CancelScope(shield=True):
                await world.destroy(domid)

    def _die_within_a_request(self) -> None:
        for connector in self._connectors():
            put(connector, random_requests(self._chance, self._memory.directories, 3))
            connector.channel.notify()

    # Devices

    def _new_display(self, number: int) -> Frontend:
        chance, world = self._chance, self._world
        specs = []
        for index in range(chance.choice((1, 1, 1, 2, 2, 3, 8))):
            shared = world.screen(f"shared-{chance.randrange(4)}")
            own = f"{self._name}-{number}-{index}"
            odd = chance.choice(("HDMI-A-1", "0", "7", "../x", "good", "a b", "\x1b"))
            specs.append(ConnectorSpec(chance.choice((own, own, shared, odd)), 64, 48))
        world.tools.add_display(self._domid, specs, number, be_alloc=chance.random() < 0.3)
        return self._load_driver(number)

    def _load_driver(self, number: int) -> Frontend:
        """Run a new driver of a display. The former one ends, and leaves everything as it is."""
        self._guest.display = display = Frontend(self._guest, number)
        self._scopes.setdefault(number, trio.CancelScope()).cancel()
        self._scopes[number] = trio.CancelScope()
        self._nursery.start_soon(self._drive, display.run, self._scopes[number])
        return display

    def _new_input(self, number: int) -> InputFrontend:
        chance = self._chance
        which = chance.choice(
            ("K:shared-0", f"K:{self._name}-0-0;P:{self._name}-0-0", "K:/dev/input/event0", "T:x", "", "K", "K:")
        )
        nodes = {"unique-id": which}
        for key in ("feature-abs-pointer", "feature-multi-touch", "feature-disable-keyboard", "width", "height"):
            if chance.random() < 0.3:
                nodes[key] = chance.choice(("0", "1", "64", "99999999999", "x", ""))
        self._world.tools.add_input(self._domid, nodes, number)
        driver = InputFrontend(self._guest.domain, self._guest.hypervisor, number)
        self._nursery.start_soon(self._drive, driver.run, trio.CancelScope())
        return driver

    async def _drive(self, driver: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        with contextlib.suppress(Exception), scope:
            await driver()

    def _connectors(self) -> list[FrontConnector]:
        return [connector for display in self._displays for connector in display.connectors]

    # Acts

    async def _act(self) -> None:
        weights = [weight for weight, _ in self._acts]
        (_, act), *_ = self._chance.choices(self._acts, weights)
        self._note(f"domain {self._domid}: {act.__name__.strip('_')}")
        with contextlib.suppress(Exception), trio.move_on_after(2):
            await act()

    async def _honest(self) -> None:
        display = self._chance.choice(self._displays)
        if display.connected.is_set():
            await honest(display, self._chance)
        else:
            with trio.move_on_after(0.5):
                await display.connected.wait()

    async def _requests(self) -> None:
        connector = self._chance.choice(self._connectors())
        if self._chance.random() < 0.3:
            self._memory.add()
        put(connector, random_requests(self._chance, self._memory.directories, self._chance.choice((1, 1, 4, 32))))
        if self._chance.random() < 0.9:
            connector.channel.notify()
        if self._chance.random() < 0.5:
            await trio.sleep(self._chance.choice((0.001, 0.02)))

    async def _flips_and_detaches(self) -> None:
        """Show, and take away what is shown, with cookies that are used again."""
        display, chance = self._chance.choice(self._displays), self._chance
        dbuf, fb, buffer = await display.create_framebuffer(64, 48)
        connector = chance.choice(display.connectors)
        steps: list[Request] = [
            SetConfig(0, fb, 0, 0, 64, 48, 32),
            SetConfig(0, 0, 0, 0, 0, 0, 0),
            PageFlip(0, fb),
            PageFlip(0, fb),
            FbDetach(0, fb),
            DbufDestroy(0, dbuf),
            GetEdid(0, 128, buffer.directory),
        ]
        for _ in range(chance.randrange(2, 12)):
            await connector.ask(chance.choice(steps))

    def _deaf(self) -> FrontConnector:
        """Return a connector that reads nothing any more: wrong indices would keep the guest itself busy."""
        connector = self._chance.choice(self._connectors())
        connector.ring.take = connector.events.take = lambda: None  # type: ignore[method-assign]
        connector.ring.final_check = lambda: False  # type: ignore[method-assign]
        return connector

    async def _raw_ring(self) -> None:
        connector, chance = self._deaf(), self._chance
        if chance.random() < 0.5:
            connector.ring_page.store(
                chance.choice((0, 4, 8, 12)), chance.choice((0, 1, 33, 5000, chance.getrandbits(32)))
            )
        else:
            connector.ring_page.write(64 * chance.randrange(1, 33), chance.randbytes(64))
        connector.channel.notify()

    async def _raw_events(self) -> None:
        connector, chance = self._deaf(), self._chance
        connector.event_page.store(chance.choice((0, 4)), chance.choice((0, 1, 63, 5000, chance.getrandbits(32))))
        connector.event_channel.notify()

    async def _storm(self) -> None:
        connector = self._chance.choice(self._connectors())
        for _ in range(self._chance.choice((3, 30, 300))):
            connector.channel.notify()
            if self._chance.random() < 0.3:
                await trio.lowlevel.checkpoint()

    async def _spoil(self) -> None:
        memory = self._memory
        self._chance.choice((memory.add, memory.spoil, memory.revoke, memory.scribble))()

    def _home(self) -> str:
        kind = self._chance.choice(("vdispl", "vdispl", "vkbd"))
        return f"device/{kind}/{self._chance.randrange(3)}"

    async def _write_node(self) -> None:
        chance = self._chance
        path = f"{self._home()}/{chance.choice(('', '', '0/', '1/'))}{chance.choice(NODES)}"
        for _ in range(chance.choice((1, 1, 5, 50))):
            await self._guest.hypervisor.store.write(path, chance.choice(VALUES))

    async def _remove_node(self) -> None:
        chance = self._chance
        home = self._home()
        await self._guest.hypervisor.store.remove(
            chance.choice((home, f"{home}/state", f"{home}/0", f"{home}/{chance.choice(NODES)}"))
        )

    async def _state_machine(self) -> None:
        """Write states out of order."""
        home = self._home()
        for _ in range(self._chance.randrange(1, 8)):
            await self._guest.hypervisor.store.write(f"{home}/state", b"%d" % self._chance.randrange(9))
            await trio.sleep(self._chance.choice((0, 0.001, 0.05, 0.5)))

    async def _reload_driver(self) -> None:
        """Unload the driver of a display, or let it vanish, and load it again; sometimes in a loop."""
        chance = self._chance
        for _ in range(chance.choice((1, 1, 6))):
            number = chance.randrange(len(self._displays))
            display = self._displays[number]
            if chance.random() < 0.5:
                with contextlib.suppress(Exception):
                    await display.close()
            self._displays[number] = again = self._load_driver(number)
            with trio.move_on_after(chance.choice((0, 0.02, 0.3, 2))):
                await again.connected.wait()

    async def _change_rings(self) -> None:
        """Load the driver again, and change what it has published while the backend connects."""
        chance, store = self._chance, self._guest.hypervisor.store
        number = chance.randrange(len(self._displays))
        self._displays[number] = display = self._load_driver(number)
        with trio.move_on_after(1):
            while display.state is not State.INITIALISED:
                await trio.sleep(0.01)
        path = f"device/vdispl/{number}/{chance.randrange(len(display.connectors))}/{chance.choice(NODES[1:5])}"
        right = await store.read(path)
        await trio.sleep(chance.uniform(0.08, 0.1))  # the backend waits for 0.1 s before it connects
        for _ in range(chance.choice((1, 30, 200))):
            await store.write(path, chance.choice((right, right, b"%d" % chance.randrange(8, 40))))

    async def _input(self) -> None:
        driver, chance = self._chance.choice(self._inputs), self._chance
        match chance.randrange(5):
            case 0:
                driver.reads = False  # wrong indices would keep the guest itself busy
                driver.memory.store(
                    chance.choice((0, 4, 8, 12)), chance.choice((0, 1, 64, 5000, chance.getrandbits(32)))
                )
                driver.channel.notify()
            case 1:
                await driver.publish()
            case 2:
                driver.reads = False
            case 3:
                await driver.switch(State(chance.randrange(9)))
            case _:
                driver.channel.notify()

    async def _silence(self) -> None:
        await trio.sleep(self._chance.choice((0.05, 0.2, 0.5, 2)))
