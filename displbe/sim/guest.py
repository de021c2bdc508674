"""A simulated guest. Its display frontend behaves like Linux's `drm_xen_front` (drivers/gpu/drm/xen), and it can draw."""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import AsyncIterator, Mapping
from typing import Final

import trio

from displbe.wire import displif
from displbe.wire.displif import Request, Response
from displbe.wire.formats import FORMATS, fourcc, stride
from displbe.wire.pgdir import REFS_PER_PAGE, directory_pages, encode_directory, pages_of
from displbe.wire.ring import FrontControlRing, FrontEventPage
from displbe.wire.xenbus import State, parse_state
from displbe.wire.xs import parse_number
from displbe.xen.barriers import SharedMemory
from displbe.xen.evtchn import Channel
from displbe.xen.memory import Memory
from displbe.xen.port import StoreError

from .hypervisor import Domain, SimBuffer, SimHypervisor, Xen
from .input import InputFrontend
from .toolstack import ConnectorSpec, Toolstack

__all__ = ["BorrowedBuffer", "DisplayBuffer", "FrontConnector", "Frontend", "Guest", "GuestFailure", "draw_bars"]

RESPONSE_TIMEOUT: Final = 3.0
"""XEN_DRM_FRONT_WAIT_BACK_MS, in seconds."""
FLIP_TIMEOUT: Final = 3.1
"""FRAME_DONE_TO_MS, in seconds."""


class GuestFailure(Exception):
    """The backend answered a request with an error; `status` is the negative errno of the response."""

    def __init__(self, request: Request, status: int) -> None:
        super().__init__(f"{type(request).__name__}: {status}")
        self.status = status


class DisplayBuffer:
    """A display buffer in the guest's memory, granted to the backend."""

    def __init__(self, domain: Domain, size: int, *, writable: bool = True) -> None:
        self.size = size
        """In bytes."""
        self._domain = domain
        self._count = pages_of(size)
        self._first = domain.allocate(self._count)
        self._directory_count = directory_pages(self._count)
        self._directory = domain.allocate(self._directory_count)
        self.pixels = domain.pages(self._first, self._count)[:size]
        # Linux's frontend grants its pages writable (drivers/xen/xen-front-pgdir-shbuf.c).
        self.refs = [domain.grant(self._first + n, domain.backend, writable=writable) for n in range(self._count)]
        self._directory_refs = [domain.grant(self._directory + n, domain.backend) for n in range(self._directory_count)]
        for n, page in enumerate(encode_directory(self.refs, self._directory_refs)):
            domain.pages(self._directory + n, 1)[:] = page
        self.directory = self._directory_refs[0]

    def free(self) -> None:
        """End the grants and free the pages. Raises AssertionError when the backend still maps one of them."""
        held = [ref for ref in (*self.refs, *self._directory_refs) if not self._domain.end_grant(ref)]
        assert not held, f"{len(held)} pages still mapped"
        self._domain.free(self._first, self._count)
        self._domain.free(self._directory, self._directory_count)


class BorrowedBuffer:
    """A display buffer in the backend's memory. The guest links the directory pages; the backend writes the references into them."""

    def __init__(self, domain: Domain, size: int) -> None:
        self.size = size
        """In bytes."""
        self._domain = domain
        self._count = pages_of(size)
        self._pages = directory_pages(self._count)
        self._first = domain.allocate(self._pages)
        self._refs = [domain.grant(self._first + n, domain.backend) for n in range(self._pages)]
        for n, page in enumerate(encode_directory([0] * self._count, self._refs)):
            domain.pages(self._first + n, 1)[:] = page
        self.directory = self._refs[0]
        self._mapped: SimBuffer | None = None
        self._borrowed = contextlib.ExitStack()

    async def map(self, hypervisor: SimHypervisor) -> memoryview:
        """Map the pages that the backend has granted (backend_map in xen-front-pgdir-shbuf.c)."""
        refs: list[int] = []
        for n in range(self._pages):
            page = bytes(self._domain.pages(self._first + n, 1))
            refs += struct.unpack_from(f"<{REFS_PER_PAGE}I", page, 4)[: self._count - len(refs)]
        self._mapped = hypervisor.map_shared(self._domain.backend, refs)
        memory: Memory = await self._mapped.map()
        return self._borrowed.enter_context(memory.borrow())

    async def free(self) -> None:
        """Unmap the pages and free the directory. Raises AssertionError when the backend still maps the directory."""
        self._borrowed.close()
        if self._mapped is not None:
            await self._mapped.aclose()
        for ref in self._refs:
            assert self._domain.end_grant(ref), "directory page still mapped"
        self._domain.free(self._first, self._pages)


class FrontConnector:
    """The guest's side of one connector: rings and event channels.

    It has more than fifteen attributes: one for each reference, port, page, ring and channel of the protocol.
    """

    def __init__(self, domain: Domain, hypervisor: SimHypervisor) -> None:
        self._domain = domain
        self._pages = domain.allocate(2)
        self.req_ref = domain.grant(self._pages, domain.backend)
        self.evt_ref = domain.grant(self._pages + 1, domain.backend)
        self.req_port = domain.offer(domain.backend)
        self.evt_port = domain.offer(domain.backend)
        self.ring_page = SharedMemory(domain.pages(self._pages, 1))
        self.event_page = SharedMemory(domain.pages(self._pages + 1, 1))
        self.ring = FrontControlRing(self.ring_page)
        self.events = FrontEventPage(self.event_page)
        self._next_id = 0
        self._next_event_id = 0
        self._answers: dict[int, Response] = {}
        self._answered = trio.Event()
        self.flips_done: list[int] = []
        self._flipped = trio.Event()
        self.channel: Channel = hypervisor.channels.adopt(self.req_port, self._on_response)
        self.event_channel: Channel = hypervisor.channels.adopt(self.evt_port, self._on_event)

    def free(self) -> None:
        """Close the ports and end the grants. Raises AssertionError when the backend still maps a page."""
        self.channel.close()
        self.event_channel.close()
        for ref in (self.req_ref, self.evt_ref):
            assert self._domain.end_grant(ref), "ring page still mapped"
        self._domain.free(self._pages, 2)

    def _on_response(self) -> bool:
        while True:
            while (slot := self.ring.take()) is not None:
                response = displif.decode_response(slot)
                self._answers[response.id] = response
            if not self.ring.final_check():
                break
        answered, self._answered = self._answered, trio.Event()
        answered.set()
        self.channel.rearm()
        return False

    def _on_event(self) -> bool:
        while (slot := self.events.take()) is not None:
            event = displif.decode_event(slot)
            # evtchnl_interrupt_evt: an event with an unexpected id is dropped, but counted.
            if event.id == self._next_event_id & 0xFFFF:
                self.flips_done.append(event.fb_cookie)
            self._next_event_id += 1
        flipped, self._flipped = self._flipped, trio.Event()
        flipped.set()
        self.event_channel.rearm()
        return False

    async def ask(self, request: Request) -> Response:
        """Send a request with the next id, and return its response. Raises trio.TooSlowError after 3 s."""
        number = self._next_id & 0xFFFF
        self._next_id += 1
        data = bytearray(displif.encode_request(request))
        data[0:2] = number.to_bytes(2, "little")
        if self.ring.put(bytes(data)):
            self.channel.notify()
        with trio.fail_after(RESPONSE_TIMEOUT):
            while number not in self._answers:
                await self._answered.wait()
        return self._answers.pop(number)

    async def order(self, request: Request) -> None:
        """Send a request and check its response. Raises GuestFailure for an error, trio.TooSlowError."""
        response = await self.ask(request)
        assert response.operation == request.operation
        if response.status != 0:
            raise GuestFailure(request, response.status)

    async def flip(self, fb_cookie: int) -> None:
        """Request a page flip and wait for its event. Raises GuestFailure, trio.TooSlowError after 3.1 s."""
        done = len(self.flips_done)
        await self.order(displif.PageFlip(0, fb_cookie))
        with trio.fail_after(FLIP_TIMEOUT):
            while len(self.flips_done) == done:
                await self._flipped.wait()


class Frontend:
    """The guest's display driver for one vdispl device."""

    def __init__(self, guest: Guest, number: int = 0) -> None:
        self.connectors: list[FrontConnector] = []
        self.state = State.INITIALISING
        self.connected = trio.Event()
        self.disconnected = trio.Event()
        self.history: list[State] = []
        self._guest = guest
        self._path = f"device/vdispl/{number}"
        self._changed = trio.Event()
        self._next_cookie = 0xFFFF_8880_0000_1000  # a kernel pointer

    async def run(self) -> None:
        """Follow the backend's state (displback_changed)."""
        store = self._guest.hypervisor.store
        backend = (await store.read(f"{self._path}/backend")).decode()
        await self._switch(State.INITIALISING)
        async with store.watch(f"{backend}/state", lambda path: self._changed.set()):
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                try:
                    state = parse_state(await store.read(f"{backend}/state"))
                except StoreError:
                    state = None
                if state is not None and (not self.history or self.history[-1] is not state):
                    self.history.append(state)
                await self._on_backend(state)

    async def _on_backend(self, state: State | None) -> None:
        if state in (State.INITIALISING, State.INIT_WAIT, State.CLOSED, State.UNKNOWN, None):
            await self._disconnect()
        if state is State.INIT_WAIT and self.state is State.INITIALISING:
            await self._publish()
        elif state is State.CONNECTED and self.state is State.INITIALISED:
            await self._switch(State.CONNECTED)
            self.connected.set()

    async def _switch(self, state: State) -> None:
        self.state = state
        with contextlib.suppress(StoreError):  # the toolstack may have removed the directory
            await self._guest.hypervisor.store.write(f"{self._path}/state", b"%d" % state)

    async def _publish(self) -> None:
        """Write the rings and ports of all connectors in one transaction, then state 3 (evtchnl_publish)."""
        store = self._guest.hypervisor.store
        count = len([name for name in await store.children(self._path) if parse_number(name.encode()) is not None])
        self.connectors = [FrontConnector(self._guest.domain, self._guest.hypervisor) for _ in range(count)]
        async with store.transaction() as transaction:
            for index, connector in enumerate(self.connectors):
                keys = {
                    "req-ring-ref": connector.req_ref,
                    "req-event-channel": connector.req_port,
                    "evt-ring-ref": connector.evt_ref,
                    "evt-event-channel": connector.evt_port,
                }
                for key, value in keys.items():
                    await transaction.write(f"{self._path}/{index}/{key}", b"%d" % value)
        await self._switch(State.INITIALISED)

    async def _disconnect(self) -> None:
        """Free rings and start again, if connected (xen_drm_front_disconnect)."""
        if self.state is not State.CONNECTED:
            return
        await self._switch(State.RECONFIGURING)
        self.free_rings()
        self.connected = trio.Event()
        self.disconnected.set()
        await self._switch(State.INITIALISING)

    def free_rings(self) -> None:
        """Free the rings and ports of all connectors."""
        for connector in self.connectors:
            connector.free()
        self.connectors = []

    async def close(self) -> None:
        """Remove the driver: state 5, wait up to 1 s for the backend's 2, free the rings, state 6 (displback_remove)."""
        store = self._guest.hypervisor.store
        backend = (await store.read(f"{self._path}/backend")).decode()
        await self._switch(State.CLOSING)
        with trio.fail_after(1.0):
            while parse_state(await store.read(f"{backend}/state")) is not State.INIT_WAIT:
                await trio.sleep(0.01)
        self.free_rings()
        self.connected = trio.Event()
        await self._switch(State.CLOSED)

    def cookie(self) -> int:
        """Return a new cookie."""
        self._next_cookie += 64
        return self._next_cookie

    async def create_framebuffer(self, width: int, height: int, format: str = "XR24") -> tuple[int, int, DisplayBuffer]:
        """Create a display buffer, and a framebuffer of its whole size: (dbuf cookie, fb cookie, buffer). Raises GuestFailure."""
        pixels = FORMATS[fourcc(format)]
        buffer = DisplayBuffer(self._guest.domain, stride(width, pixels.bits) * height)
        dbuf, fb = self.cookie(), self.cookie()
        generic = self.connectors[0]
        try:
            await generic.order(
                displif.DbufCreate(0, dbuf, width, height, pixels.bits, buffer.size, 0, buffer.directory, 0)
            )
        except GuestFailure:
            buffer.free()
            raise
        await generic.order(displif.FbAttach(0, dbuf, fb, width, height, pixels.code))
        return dbuf, fb, buffer

    async def destroy_framebuffer(self, dbuf: int, fb: int, buffer: DisplayBuffer) -> None:
        """Destroy a framebuffer and its display buffer. Raises GuestFailure."""
        generic = self.connectors[0]
        await generic.order(displif.FbDetach(0, fb))
        await generic.order(displif.DbufDestroy(0, dbuf))
        buffer.free()

    async def show(self, index: int, fb: int, width: int, height: int, bpp: int = 32) -> None:
        """Send SET_CONFIG for a whole framebuffer. Raises GuestFailure."""
        await self.connectors[index].order(displif.SetConfig(0, fb, 0, 0, width, height, bpp))

    async def hide(self, index: int) -> None:
        """Send SET_CONFIG with all fields 0, which switches the connector off. Raises GuestFailure."""
        await self.connectors[index].order(displif.SetConfig(0, 0, 0, 0, 0, 0, 0))


class Guest:
    """A domain with a display and an input frontend, whose nodes the toolstack has created."""

    def __init__(self, xen: Xen, domid: int, backend: int = 0) -> None:
        self.xen = xen
        self.domain = xen.domains[domid]
        self.domain.backend = backend
        self.hypervisor = xen.hypervisor(domid)
        self.display = Frontend(self)
        self.input = InputFrontend(self.domain, self.hypervisor)

    @classmethod
    @contextlib.asynccontextmanager
    async def booted(
        cls,
        xen: Xen,
        domid: int,
        *connectors: ConnectorSpec,
        vkb: Mapping[str, str] | None = None,
        name: str = "",
        backend: int = 0,
    ) -> AsyncIterator[Guest]:
        """Create a domain as `xl create` does, and run its kernel while the block lasts; then destroy it.

        It has a vdispl device if there are connectors, and a vkbd device with the nodes `vkb` unless that is None.
        """
        tools = Toolstack(xen.server)
        tools.create_domain(domid)
        await xen.start_domain(domid)
        if name:
            tools.write(f"/local/domain/{domid}/name", name, [("n", 0), ("r", domid)])
        if vkb is not None:
            tools.add_input(domid, vkb, backend=backend)
        if connectors:
            tools.add_display(domid, connectors, backend=backend)
            await tools.wait_state(tools.back(domid, 0, backend), State.INIT_WAIT, timeout=10)
        if vkb is not None:
            await tools.wait_state(tools.vinput(domid, 0, backend), State.INIT_WAIT, timeout=10)
        try:
            async with trio.open_nursery() as nursery:
                guest = cls(xen, domid, backend)
                await nursery.start(guest.hypervisor.run)
                if connectors:
                    nursery.start_soon(guest.display.run)
                if vkb is not None:
                    nursery.start_soon(guest.input.run)
                yield guest
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(12, shield=True):
                xen.stop_domain(domid)
                await tools.remove_display(domid, backend=backend)
                await tools.remove_input(domid, backend=backend)
                tools.destroy_domain(domid)


def draw_bars(pixels: memoryview, width: int, height: int, phase: float = 0.0) -> None:
    """Draw colour bars above a grey ramp, shifted sideways by `phase` (0 to 1), in XRGB8888 without padding."""
    bars = (0xFFFFFF, 0xFFFF00, 0x00FFFF, 0x00FF00, 0xFF00FF, 0xFF0000, 0x0000FF, 0x101010)
    shift = math.floor(phase * width)
    columns = [(x + shift) % width for x in range(width)]
    upper = b"".join((bars[x * len(bars) // width] | 0xFF000000).to_bytes(4, "little") for x in columns)
    lower = b"".join((x * 255 // width * 0x010101 | 0xFF000000).to_bytes(4, "little") for x in columns)
    split = height * 3 // 4
    pixels[: width * height * 4] = upper * split + lower * (height - split)
