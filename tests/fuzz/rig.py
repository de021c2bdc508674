"""A connected display device without XenStore, handshake and daemon, for a high rate of requests.

The driver, its buffers, rings and event channels are the real ones, on the simulated Xen. The guest's half is plain memory.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, cast

import structlog
import trio

from displbe.backend.guests import Guests, GuestSettings
from displbe.backend.nodes import DeviceNodes
from displbe.backend.quota import Limits, Quota, Total
from displbe.display.device import DisplayDriver
from displbe.pump.native import Pump
from displbe.sim.hypervisor import Domain, SimHypervisor, Xen
from displbe.sinks.base import Sink
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.sinks.headless.sink import HeadlessSink
from displbe.wire.displif import PageFlipEvent, Response, decode_event, decode_response
from displbe.wire.errors import FrontendBroken
from displbe.wire.pgdir import encode_directory
from displbe.wire.ring import FrontControlRing, FrontEventPage
from displbe.xen.barriers import SharedMemory
from displbe.xen.port import Ledger, NoEntry, Store

__all__ = ["GUEST", "LIMITS", "PAGES", "FakeStore", "Front", "Machine", "Rig", "fake_nodes"]

GUEST: Final = 1
PAGES: Final = 12
"""Pages of the guest's only buffer; every directory lists some of them."""
LIMITS: Final = Limits(
    pages=64, buffers=6, framebuffers=9, alloc_pages=24, modesets_per_second=1e9, requests_per_second=1e9
)
SILENT: Final[Any] = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger("critical"))


class FakeStore:
    """A XenStore of a few nodes, all owned by the toolstack. It never waits, so that a coroutine that reads it runs to its end at once."""

    def __init__(self, nodes: dict[str, bytes], owner: int = 0) -> None:
        self.nodes = nodes
        self.owner = owner

    async def read(self, path: str) -> bytes:
        """port.Store.read"""
        if path not in self.nodes:
            raise NoEntry("ENOENT")
        return self.nodes[path]

    async def permissions(self, path: str) -> list[tuple[str, int]]:
        """port.Store.permissions"""
        await self.read(path)
        return [("n", self.owner)]


def fake_nodes(values: dict[str, bytes], owner: int = 0) -> DeviceNodes:
    """A device's nodes in such a store."""
    nodes = DeviceNodes(cast("Store", FakeStore(values, owner)), "vdispl", "vdispl", GUEST, 0)
    nodes._log = SILENT
    return nodes


class Front:
    """The guest's half of one connector."""

    def __init__(self, host: Domain, domain: Domain) -> None:
        self._host = host
        self._domain = domain
        first = self.page_number = domain.allocate(2)
        self.refs = [domain.grant(first + n, 0) for n in range(2)]
        self.ports = [domain.offer(0) for _ in range(2)]
        self.page = SharedMemory(domain.pages(first, 1))
        self.event_page = SharedMemory(domain.pages(first + 1, 1))
        self.ring = FrontControlRing(self.page)
        self.events = FrontEventPage(self.event_page)
        self.sent = 0

    def put(self, slot: bytes) -> None:
        """Put a request, without notification. Raises BufferError when 32 are unanswered."""
        self.ring.put(slot)
        self.sent += 1

    def notify(self) -> None:
        """Notify the backend, if the port is bound."""
        peer = self._domain.peers.get(self.ports[0])
        if peer is not None:
            self._host.raise_port(peer[1])

    @property
    def answered(self) -> bool:
        """Return whether every request has been answered."""
        return self.page.load(8) == self.sent & 0xFFFFFFFF

    def take_responses(self) -> list[Response]:
        """Return the responses since the last call."""
        found = []
        while (slot := self.ring.take()) is not None:
            assert slot[3:4] + slot[12:] == bytes(53), "all else is zero"
            found.append(decode_response(slot))
        return found

    def take_events(self) -> list[PageFlipEvent]:
        """Return the events since the last call."""
        found = []
        while (slot := self.events.take()) is not None:
            found.append(decode_event(slot))
        return found


class Machine:
    """Domains 0 and 1, and a sink. `directories`: references of page directories that a request may name."""

    def __init__(self, refresh: float = 1000.0) -> None:
        self.xen = Xen(Path("/nonexistent"))
        self.host_domain = self.xen.domains[0] = Domain(0)
        self.domain = self.xen.domains[GUEST] = Domain(GUEST)
        self.host = SimHypervisor(self.xen, self.host_domain)
        self.sink = self._make_sink(refresh)
        self.pump: Pump | None = None
        first = self.domain.allocate(PAGES)
        data = [self.domain.grant(first + n, 0, writable=n % 2 == 0) for n in range(PAGES)]
        # Else a directory that be-alloc has filled could name the guest's rings.
        self.host_domain._next_ref = itertools.count(1 << 24)
        self._lists = (data, data[::2], [data[0]] * PAGES, [*data[:3], 0xDEAD], [0, 0, 0])
        self._pages = [self.domain.allocate(1) for _ in self._lists]
        self.directories = [self.domain.grant(page, 0) for page in self._pages]

    def _make_sink(self, refresh: float) -> Sink:
        return HeadlessSink(HeadlessSettings(refresh=refresh))

    def fill_directories(self) -> None:
        """Restore the directories: be-alloc writes into them."""
        for page, refs in zip(self._pages, self._lists, strict=True):
            self.domain.pages(page, 1)[:] = encode_directory(refs, [0])[0]

    def close(self) -> None:
        """Release the domains' memory and files."""
        self.host.channels.close()
        for domain in (self.domain, self.host_domain):
            domain.close()

    @contextlib.asynccontextmanager
    async def running(self, *, screens: bool = True) -> AsyncIterator[Machine]:
        """Run event channels and screens. Without `screens`, `vblank` is the screens' refresh."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.host.channels.run)
            if screens:
                await nursery.start(self.sink.run)
            yield self
            nursery.cancel_scope.cancel()

    def vblank(self) -> None:
        """Refresh every screen."""
        assert isinstance(self.sink, HeadlessSink)
        for output in self.sink.outputs.values():
            output.refresh()


class Rig:
    """One connected device. `broken` is why it was shut off, if it was."""

    def __init__(self, machine: Machine, fronts: list[Front], nodes: DeviceNodes) -> None:
        self.machine = machine
        self.fronts = fronts
        self.quota = Quota(LIMITS, Total(1 << 20, 1), machine.pump)
        guests = Guests({"fuzz": GuestSettings(be_alloc=True)})
        self.display = DisplayDriver(machine.host, machine.sink, guests).open(nodes, self.quota)
        self.broken: FrontendBroken | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, machine: Machine, connectors: int = 2, *, be_alloc: bool = True) -> AsyncIterator[Rig]:
        """Run a device; afterwards no resource may be held."""
        machine.fill_directories()
        fronts = [Front(machine.host_domain, machine.domain) for _ in range(connectors)]
        home = f"/local/domain/{GUEST}"
        nodes = {f"{home}/name": b"fuzz", f"{home}/device/vdispl/0/be-alloc": b"1" if be_alloc else b"0"}
        for index, front in enumerate(fronts):
            values = {"unique-id": b"screen-%d" % index, "resolution": b"64x48"}
            values |= {key: b"%d" % ref for key, ref in zip(("req-ring-ref", "evt-ring-ref"), front.refs, strict=True)}
            ports = zip(("req-event-channel", "evt-event-channel"), front.ports, strict=True)
            values |= {key: b"%d" % port for key, port in ports}
            nodes |= {f"{home}/device/vdispl/0/{index}/{key}": value for key, value in values.items()}
        device = fake_nodes(nodes)
        await device.identify()
        rig = cls(machine, fronts, device)
        async with trio.open_nursery() as nursery:
            await nursery.start(rig._serve)
            yield rig
            nursery.cancel_scope.cancel()
        assert machine.host.ledger == Ledger()
        assert set(rig.quota.used.values()) == {0}
        for grants in (machine.domain.grants, machine.host_domain.grants):
            assert not any(grant.mapped for grant in grants.values())
        assert not machine.host_domain.grants
        for front in fronts:
            for ref in front.refs:
                machine.domain.end_grant(ref)
            machine.domain.free(front.page_number, 2)

    async def _serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as background:
                await self.display.serve(background, task_status=task_status)
        except* FrontendBroken as group:
            broken: BaseException = group
            while isinstance(broken, BaseExceptionGroup):
                broken = broken.exceptions[0]
            assert isinstance(broken, FrontendBroken)
            self.broken = broken

    async def settle(self) -> None:
        """Notify, and wait until all requests are answered or the device is shut off."""
        for front in self.fronts:
            front.notify()
        with trio.fail_after(5):
            while self.broken is None and not all(front.answered for front in self.fronts):
                await trio.lowlevel.checkpoint()
