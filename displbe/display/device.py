"""The vdispl driver: serves guests' displays, one `DisplayDevice` for each device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import trio

from displbe.backend.driver import Parts
from displbe.backend.guests import Guests
from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.backend.quota import Quota, TokenBucket
from displbe.backend.release import shielded_stack
from displbe.ops.text import escape
from displbe.ops.traces import TraceFiles, TraceHeader
from displbe.pump.native import Bucket
from displbe.sinks.base import Claimant, CopyMemory, DeviceConnector, Output, OutputUnavailable, Sink
from displbe.wire.errors import FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing, BackEventPage
from displbe.wire.xenbus import TRANSITIONS
from displbe.xen.port import EventChannel, Hypervisor, Page, StoreLost

from .blanked_by_operator import BlankedScreens, ScreenId
from .buffers import BeAlloc, Buffers
from .connected import ConnectedDisplay
from .connector import Connector
from .edid import answer_edid
from .events import FlipEvents
from .published import RING_KEYS, PublishedConnector, read_be_alloc, read_connectors, read_device_connectors, read_rings
from .screen import Screen, modeset_limit
from .steady import PumpedConnector
from .trace import Trace, trace_lines

__all__ = ["DisplayDevice", "DisplayDriver"]

LOGGED: Final = 8
"""The number of each connector's last requests that are logged when a device is shut off."""


class DisplayDriver:
    """The vdispl devices of all guests (backend.driver.Driver)."""

    backend_kind: Final = "vdispl"
    frontend_kind: Final = "vdispl"
    transitions: Final = TRANSITIONS
    published: Final = RING_KEYS

    def __init__(self, hypervisor: Hypervisor, sink: Sink, guests: Guests, traces: TraceFiles | None = None) -> None:
        self.guests = guests
        self._hypervisor = hypervisor
        self._sink = sink
        self._traces = traces or TraceFiles("")
        self._blanked = BlankedScreens()

    def open(self, nodes: DeviceNodes, quota: Quota) -> DisplayDevice:
        """Return the service of a device that was found."""
        return DisplayDevice(nodes, quota, self._hypervisor, self._sink, self.guests, self._traces, self._blanked)


class DisplayDevice:
    """One guest's display, over all its connections (backend.driver.Service)."""

    def __init__(
        self,
        nodes: DeviceNodes,
        quota: Quota,
        hypervisor: Hypervisor,
        sink: Sink,
        guests: Guests,
        traces: TraceFiles,
        blanked: BlankedScreens,
    ) -> None:
        self.connectors: list[Connector] = []
        """The connectors of the last connection, kept after it has ended: an operator may ask for their traces."""
        self.device_connectors: dict[int, DeviceConnector] = {}
        """The device's connectors by their numbers, as the toolstack and the configuration describe them. The sink knows them."""
        self._served: list[PublishedConnector] = []
        """The connectors that the frontend had published when it was connected; empty when it is not connected."""
        self._modesets: dict[int, TokenBucket] = {}
        """The limits of mode changes by the connectors' numbers, over all connections."""
        self._nodes = nodes
        self._quota = quota
        self._hypervisor = hypervisor
        self._sink = sink
        self._guests = guests
        self._traces = traces
        self._blanked = blanked

    async def arrive(self) -> None:
        """Tell the sink the device's connectors: their windows open now, before the frontend connects. Raises StoreLost."""
        try:
            await self._update_connectors()
        except DeviceRefused:
            pass  # `serve` looks again

    async def _update_connectors(self) -> None:
        """Tell the sink about connectors that the toolstack or the configuration has added or changed since the last call.

        Only nodes of the toolstack count. The guest can remove such a node, and nothing follows from that: connectors are removed with the
        device. Raises StoreLost; DeviceRefused if a node has changed hands meanwhile: its value may be the guest's.
        """
        nodes = self._nodes
        guest = self._guests.settings(nodes.name)
        found = await read_device_connectors(nodes, guest)
        if await read_device_connectors(nodes, guest) != found:
            raise DeviceRefused("the connectors have been changed meanwhile; displbe looks again")
        for index, (name, width, height) in enumerate(found):
            before = self.device_connectors.get(index)
            if before is not None and (before.name, before.width, before.height) == (name, width, height):
                continue
            if before is not None:
                self._sink.connector_removed(before)
            claimant = Claimant(nodes.domid, nodes.name)
            connector = DeviceConnector(claimant, nodes.number, index, name, width, height)
            self.device_connectors[index] = connector
            self._sink.connector_added(connector)

    async def prepare(self) -> Mapping[str, str]:
        """Return the node `versions`: the versions of the protocol that displbe serves."""
        await trio.lowlevel.checkpoint()
        return {"versions": "1,2"}  # XENDISPL_FIELD_BE_VERSIONS

    def depart(self) -> None:
        """Tell the sink that the device's connectors are gone: their windows close."""
        while self.device_connectors:
            self._sink.connector_removed(self.device_connectors.popitem()[1])

    def close(self) -> None:
        """Forget the last connection; and the screens that the operator has blanked, if the guest's name is not known."""
        self._set_connectors([])
        if not self._nodes.name:
            self._blanked.forget_domain(self._nodes.domid)

    def _set_connectors(self, connectors: list[Connector]) -> None:
        """Set the connectors, and forget those of the last connection."""
        old, self.connectors = self.connectors, connectors
        for connector in old:
            connector.forget()

    async def is_current(self) -> bool:
        """Return whether the rings that are served are those that the frontend has published.

        A frontend that starts over while it is being connected may be back at state 3, with other rings, before its state 1 was seen.
        """
        try:
            for index, connector in enumerate(self._served):
                if await read_rings(self._nodes, index) != connector.rings:
                    return False
            return True
        except (DeviceRefused, StoreLost):
            return True  # the frontend is about to leave and will change its state; or the caller asks again after StoreLost

    async def status(self) -> Parts:
        """Return the status of each connector. Between two connectors, the rings are served."""
        statuses = []
        for connector in self.connectors:
            statuses.append(connector.status())
            await trio.lowlevel.checkpoint()
        return Parts(connectors=tuple(statuses))

    # The operator

    def _screen_id(self, index: int) -> ScreenId:
        return self._nodes.name or self._nodes.domid, self._nodes.number, index

    async def blank(self, connector: Connector) -> None:
        """Switch a screen off until `unblank`, also for the guest's next connections. This connection may have ended."""
        self._blanked.add(self._screen_id(connector.index))
        if connector.is_served:
            await connector.screen.blank()

    def reopen(self, connector: DeviceConnector) -> None:
        """Open a connector's window again, which its user has closed or iconified or cannot see. Raises OutputUnavailable."""
        self._sink.reopen(connector)

    async def unblank(self, connector: Connector) -> None:
        """Show again what the guest shows. Raises SinkError; the screen stays off then."""
        screen = self._screen_id(connector.index)
        self._blanked.discard(screen)
        try:
            if connector.is_served:
                await connector.screen.unblank()
        except BaseException:
            self._blanked.add(screen)
            raise

    # The connection

    async def serve(self, background: trio.Nursery, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve a frontend whose rings are published, until cancelled (backend.driver.Service)."""
        nodes, guest = self._nodes, self._guests.settings(self._nodes.name)
        await self._update_connectors()
        published = await read_connectors(nodes, guest)
        be_alloc = BeAlloc.NOT_ASKED_FOR
        if await read_be_alloc(nodes):
            be_alloc = BeAlloc.ALLOWED if guest.be_alloc else BeAlloc.FORBIDDEN
        display = ConnectedDisplay(self._keep_traces)
        async with shielded_stack() as stack:
            outputs = [self._claim(one, stack) for one in published]
            buffers = Buffers(
                self._hypervisor,
                nodes.domid,
                self._quota,
                outputs,
                be_alloc=be_alloc,
                dmabuf=self._sink.wants_dmabuf,
                shared=self._sink.wants_shared,
                background=background,
                log=nodes.log,
            )
            stack.push_async_callback(buffers.aclose)
            stack.push_async_callback(display.close_screens)
            for one, output in zip(published, outputs, strict=True):
                self._add_connector(display, one, output, buffers, stack)
            self._set_connectors(display.connectors)
            # The frontend may have started over meanwhile, and its references may name other pages now.
            if await read_connectors(nodes, guest) != published:
                raise DeviceRefused("the frontend has published other rings meanwhile")
            self._served = published
            stack.callback(self._set_served, [])
            await display.run(task_status=task_status)

    def _set_served(self, published: list[PublishedConnector]) -> None:
        self._served = published

    def _claim(self, published: PublishedConnector, stack: AsyncExitStack) -> Output:
        claimant = Claimant(self._nodes.domid, self._nodes.name)
        try:
            self._quota.take("connectors")
            stack.callback(self._quota.give, "connectors")
            output = self._sink.claim(published.name, published.width, published.height, claimant)
        except (OutputUnavailable, RequestError) as error:
            raise DeviceRefused(str(error)) from error
        output.copies = CopyMemory(partial(self._quota.take, "copy_pages"), partial(self._quota.give, "copy_pages"))
        stack.push_async_callback(output.release)
        return output

    def _add_connector(
        self,
        display: ConnectedDisplay,
        published: PublishedConnector,
        output: Output,
        buffers: Buffers,
        stack: AsyncExitStack,
    ) -> None:
        """Create the next connector of a connection, map its pages and bind its ports. The stack stops it, and then releases them.

        Raises HypervisorError, FrontendBroken.
        """
        domid, index, rings = self._nodes.domid, len(display.connectors), published.rings
        resolution = published.width, published.height
        ring_page, event_page = (self._map(ref, stack) for ref in (rings.req_ref, rings.evt_ref))
        ring = BackControlRing(ring_page)
        event_channel = self._bind(
            rings.evt_port, _nothing_to_serve, stack
        )  # the frontend never notifies on its event port
        events = FlipEvents(BackEventPage(event_page), event_channel, display.broken)
        screen = Screen(
            output,
            index,
            resolution,
            buffers,
            events,
            display.clock,
            self._modesets.setdefault(index, modeset_limit(self._quota.limits.modesets_per_second)),
            blanked=self._screen_id(index) in self._blanked,
        )
        edid = partial(answer_edid, self._hypervisor, domid, output, published.name, *resolution)
        log = self._nodes.log.bind(connector=published.name)
        connector = Connector(index, screen, buffers, events, edid, self._quota, log, display.broken)
        display.connectors.append(connector)
        channel = self._bind(rings.req_port, connector.requests.notified, stack)
        # Before the ports are unbound: the pump notifies them. Also if the connection is refused before it is served.
        stack.callback(connector.stop)
        pump, bucket = self._sink.pump, self._quota.requests
        pumped = None
        if pump is not None and isinstance(bucket, Bucket):
            pages, channels = (ring_page, event_page), (channel, event_channel)
            pumped = PumpedConnector(
                pump, bucket, connector.requests, ring, screen, events, pages, channels, display.taken
            )
        connector.start(ring, channel, pumped)

    def _map(self, ref: int, stack: AsyncExitStack) -> Page:
        page = self._hypervisor.map_page(self._nodes.domid, ref, writable=True)
        stack.callback(page.close)
        return page

    def _bind(self, port: int, notified: Callable[[], bool], stack: AsyncExitStack) -> EventChannel:
        channel = self._hypervisor.bind(self._nodes.domid, port, notified)
        stack.callback(channel.close)
        return channel

    def _keep_traces(self, connectors: list[Connector], reason: FrontendBroken) -> None:
        """Keep the last requests of a device that is shut off, in the log and in files."""
        epoch = Trace.epoch()
        guest = self._nodes.name or f"domain{self._nodes.domid}"
        for connector in connectors:
            connector.peek()
            last = list(trace_lines(connector.requests.trace.records(LOGGED), epoch))
            self._nodes.log.warning("last requests", connector=connector.name, requests=last)
        pieces = (
            (
                TraceHeader(escape(guest), escape(connector.name), epoch, escape(str(reason))),
                connector.requests.trace.records(),
            )
            for connector in connectors
        )
        self._traces.keep(escape(guest), self._nodes.number, pieces)


def _nothing_to_serve() -> bool:
    return False
