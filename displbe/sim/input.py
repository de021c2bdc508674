"""A guest's input frontend, which behaves like Linux's `xen-kbdfront` (drivers/input/misc), and the events that the guest's programs get.

An event that would crash the guest's kernel is recorded as an `Oops`.
"""

from __future__ import annotations

import contextlib
from typing import Final

import trio

from displbe.wire import kbdif
from displbe.wire.kbdif import FrontKbdPage, InEvent
from displbe.wire.xenbus import State, parse_state
from displbe.wire.xs import parse_number
from displbe.xen.barriers import SharedMemory
from displbe.xen.evtchn import Channel
from displbe.xen.port import StoreError

from .hypervisor import Domain, SimHypervisor

__all__ = ["InputCore", "InputFrontend", "Oops"]

KEYBOARD: Final = frozenset((*range(1, 240), *range(0x160, 0x2FF)))
POINTER: Final = frozenset(range(0x110, 0x118))


class Oops(Exception):
    """The guest's kernel would have dereferenced a null pointer, or written outside an array."""


class InputCore:
    """The guest's input devices: the input that its programs get from the events that its driver reads (drivers/input/input.c)."""

    def __init__(self) -> None:
        self.events: list[InEvent] = []
        """All events, in order."""
        self.pressed: set[int] = set()
        self.repeats: list[int] = []
        self.fingers: dict[int, tuple[int, int]] = {}
        self.position: tuple[int, int] | None = None
        self.moved = [0, 0]
        self.wheel = 0
        """REL_WHEEL: positive is up."""
        self.warnings: list[InEvent] = []
        """Events that the kernel would drop, with or without a warning."""
        self.oops: Oops | None = None
        self.has_keyboard = self.has_pointer = True
        self.absolute = False
        self.size = (800, 600)
        self.contacts = 0

    def handle(self, event: InEvent) -> None:
        """xenkbd_handle_event"""
        self.events.append(event)
        match event:
            case kbdif.Key():
                self._handle_key(event)
            case kbdif.Motion(x, y, z):
                if not self.has_pointer or self.absolute:
                    self.warnings.append(event)
                else:
                    self.moved[0] += x
                    self.moved[1] += y
                    self.wheel -= z
            case kbdif.Position(x, y, z):
                if not self.has_pointer or not self.absolute or not (0 <= x <= self.size[0] and 0 <= y <= self.size[1]):
                    self.warnings.append(event)
                else:
                    self.position = x, y
                    self.wheel -= z
            case _:
                self._handle_touch(event)

    def _handle_key(self, event: kbdif.Key) -> None:
        if not self.has_pointer:
            self.oops = Oops("a key without a pointer")
            return
        if event.keycode in POINTER:
            pass
        elif not self.has_keyboard:
            self.oops = Oops("a key without a keyboard")
            return
        elif event.keycode > 0x2FF:
            self.oops = Oops(f"keycode {event.keycode}")
            return
        elif event.keycode not in KEYBOARD:
            self.warnings.append(event)
            return
        if not event.pressed:
            self.pressed.discard(event.keycode)
        elif event.keycode in self.pressed:
            self.repeats.append(event.keycode)
        else:
            self.pressed.add(event.keycode)

    def _handle_touch(self, event: InEvent) -> None:
        assert not isinstance(event, (kbdif.Key, kbdif.Motion, kbdif.Position))
        if not self.contacts:
            self.warnings.append(event)
            return
        if event.contact_id >= self.contacts:
            self.oops = Oops(f"contact {event.contact_id} of {self.contacts}")
            return
        if isinstance(event, kbdif.TouchDown):
            self.fingers[event.contact_id] = event.abs_x, event.abs_y
        elif isinstance(event, kbdif.TouchUp):
            self.fingers.pop(event.contact_id, None)
        elif isinstance(event, kbdif.TouchMotion):
            if event.contact_id not in self.fingers:
                self.warnings.append(event)
            else:
                self.fingers[event.contact_id] = event.abs_x, event.abs_y


class InputFrontend(InputCore):
    """The guest's input driver for one vkbd device.

    It has more than fifteen attributes: with its base class, it is the driver and the input devices of the driver.
    """

    def __init__(self, domain: Domain, hypervisor: SimHypervisor, number: int = 0) -> None:
        super().__init__()
        self.state = State.INITIALISING
        self.connected = trio.Event()
        self.reads = True
        """Whether it reads events when it is notified."""
        self.kicks = 0
        """The number of notifications that came with events."""
        self.history: list[State] = []
        self.page: FrontKbdPage
        self.memory: SharedMemory
        self.channel: Channel
        self._domain = domain
        self._hypervisor = hypervisor
        self._path = f"device/vkbd/{number}"
        self._changed = trio.Event()
        self._published = False
        self._slot = -1

    async def run(self) -> None:
        """xenkbd_probe, then xenkbd_backend_changed."""
        store = self._hypervisor.store
        backend = (await store.read(f"{self._path}/backend")).decode()
        await self._probe(backend)
        await self.publish()
        async with store.watch(f"{backend}/state", lambda path: self._changed.set()):
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                try:
                    state = parse_state(await store.read(f"{backend}/state"))
                except StoreError:
                    return
                if state is not None and (not self.history or self.history[-1] is not state):
                    self.history.append(state)
                await self._on_backend(state)

    async def _probe(self, backend: str) -> None:
        store = self._hypervisor.store

        async def read(key: str, default: int = 0) -> int:
            """xenbus_read_unsigned"""
            try:
                number = parse_number(await store.read(f"{backend}/{key}"))
            except StoreError:
                return default
            return default if number is None else number

        self.has_keyboard = not await read("feature-disable-keyboard")
        self.has_pointer = not await read("feature-disable-pointer")
        self.size = await read("width", 800), await read("height", 600)
        if await read("feature-multi-touch"):
            await store.write(f"{self._path}/request-multi-touch", b"1")
            self.contacts = await read("multi-touch-num-contacts", 1)
        self.absolute = self.has_pointer and bool(await read("feature-abs-pointer"))
        if self.absolute:
            await store.write(f"{self._path}/request-abs-pointer", b"1")

    async def publish(self) -> None:
        """Publish a new page and port, then state 3 (xenkbd_connect_backend, xenkbd_resume)."""
        if self._published:
            self.free()
        self._page_number = self._domain.allocate(1)
        self._ref = self._domain.grant(self._page_number, self._domain.backend)
        self._port = self._domain.offer(self._domain.backend)
        self.memory = SharedMemory(self._domain.pages(self._page_number, 1))
        self.page = FrontKbdPage(self.memory)
        self.channel = self._hypervisor.channels.adopt(self._port, self._on_event)
        self._published = True
        store = self._hypervisor.store
        async with store.transaction() as transaction:
            keys = {"page-ref": self._page_number, "page-gref": self._ref, "event-channel": self._port}
            for key, value in keys.items():
                await transaction.write(f"{self._path}/{key}", b"%d" % value)
        await self.switch(State.INITIALISED)
        self._changed.set()

    def free(self) -> None:
        """Close the port and end the grant, unless the backend still maps the page (gnttab_end_foreign_access)."""
        self.channel.close()
        self._domain.end_grant(self._ref)

    async def _on_backend(self, state: State | None) -> None:
        if state in (State.INIT_WAIT, State.CONNECTED):
            if self.state is not State.CONNECTED:
                await self.switch(State.CONNECTED)
            if state is State.CONNECTED:
                self.connected.set()
        elif state in (State.CLOSING, State.CLOSED) and self.state is not State.CLOSED:
            self.connected = trio.Event()
            await self.switch(State.CLOSED)

    async def switch(self, state: State) -> None:
        """Set the frontend's state."""
        self.state = state
        with contextlib.suppress(StoreError):  # the toolstack may have removed the directory
            await self._hypervisor.store.write(f"{self._path}/state", b"%d" % state)

    def _on_event(self) -> bool:
        """input_handler"""
        if self.reads:
            self.take()
        self.channel.rearm()
        return False

    def take(self) -> None:
        """Read all events, and notify the backend."""
        found = self.page.take()
        if found:
            self.kicks += 1
            for slot in found:
                self.handle(kbdif.decode_event(slot))
            self.channel.notify()
