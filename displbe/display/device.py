"""A vdispl device: what XenStore says of it, and the frontend served while it is connected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import msgspec
import trio

from displbe.backend.device import Device, Refused, releasing
from displbe.backend.guests import GuestSettings
from displbe.ops.text import escape
from displbe.ops.traces import TraceFiles, TraceHeader
from displbe.sinks.base import Claimant, Output, OutputUnavailable, Sink
from displbe.wire.errors import FrontendBroken, RequestError
from displbe.wire.ring import BackControlRing, BackEventPage
from displbe.wire.xenbus import TRANSITIONS
from displbe.wire.xs import parse_number
from displbe.xen.port import Hypervisor, NoEntry, StoreError, StoreLost

from .buffers import Buffers
from .connector import Connector, Screen
from .edid import answer_edid
from .trace import Trace, trace_lines

__all__ = ["DisplayDriver"]

LOGGED: Final = 8
"""Requests of each connector that are in the log when a device is shut off."""
MAX_CONNECTORS: Final = 8
MAX_NAME: Final = 64
RESCUE: Final = 0.25
"""Seconds between looks at the rings without being notified; the guest waits 3 s for an answer."""


class ConnectorKeys(msgspec.Struct, frozen=True):
    """What XenStore says of one connector."""

    name: str
    width: int
    height: int
    req_ring_ref: int
    req_event_channel: int
    evt_ring_ref: int
    evt_event_channel: int


class DisplayDriver:
    """Serves vdispl devices (backend.device.Driver)."""

    backend_kind: Final = "vdispl"
    frontend_kind: Final = "vdispl"
    transitions: Final = TRANSITIONS
    published: Final = ("req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel")

    def __init__(
        self,
        hypervisor: Hypervisor,
        sink: Sink,
        guests: Mapping[str, GuestSettings] | None = None,
        traces: TraceFiles | None = None,
    ) -> None:
        self._traces = traces or TraceFiles("")
        self._hypervisor = hypervisor
        self._sink = sink
        self._served: dict[str, list[ConnectorKeys]] = {}
        self._blanked: set[Screen] = set()
        """What the operator has switched off: it stays so, whatever the guests do."""
        self.guests = guests or {}

    def settings_of(self, name: str) -> GuestSettings:
        """What the configuration says of a guest."""
        return self.guests.get(name, GuestSettings())

    async def prepare(self, device: Device) -> Mapping[str, str]:
        """Our versions of the protocol."""
        return {"versions": "1,2"}  # XENDISPL_FIELD_BE_VERSIONS

    def forget(self, device: Device) -> None:
        """What the operator may still have looked at of its last connection goes."""
        self._drop_parts(device)
        if not device.name:  # its domain's number may be another guest's one day
            self._blanked -= {screen for screen in self._blanked if screen[0] == device.domid}

    async def blank(self, connector: Connector) -> None:
        """Switch a screen off until `unblank`, also over the guest's next connections; this one may be over."""
        self._blanked.add(connector.screen)
        if connector.at_work:
            await connector.blank()

    async def unblank(self, connector: Connector) -> None:
        """Show again what the guest shows. Raises SinkError, and the screen stays dark then."""
        self._blanked.discard(connector.screen)
        try:
            if connector.at_work:
                await connector.unblank()
        except BaseException:
            self._blanked.add(connector.screen)
            raise

    def _drop_parts(self, device: Device) -> None:
        parts, device.parts = device.parts, ()
        for part in parts:
            part.forget()

    async def is_current(self, device: Device) -> bool:
        """A frontend that began anew while it was being connected may be back at 3 before its 1 was seen: with other rings."""
        try:
            for index, key in enumerate(self._served.get(device.path, ())):
                if await self._rings(device, index) != msgspec.structs.astuple(key)[3:]:
                    return False
            return True
        except (Refused, StoreLost):
            return True  # it is about to go, which its state says; or this is asked again

    async def serve(self, device: Device, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve a frontend whose rings are published, until cancelled."""
        claimant = Claimant(device.domid, device.name)
        guest = self.settings_of(device.name)
        keys = await self._read_keys(device, guest)
        be_alloc = guest.be_alloc if await self._trusted(device, "be-alloc", missing=b"0") == b"1" else None
        session = _Session(partial(self._keep_traces, device))
        async with releasing() as stack:
            outputs = [self._claim(device, claimant, key, stack) for key in keys]
            buffers = Buffers(
                self._hypervisor,
                device.domid,
                device.quota,
                outputs,
                be_alloc=be_alloc,
                dmabuf=self._sink.wants_dmabuf,
                shared=self._sink.wants_shared,
                background=device.background,
                log=device.log,
            )
            stack.push_async_callback(buffers.aclose)
            for index, (key, output) in enumerate(zip(keys, outputs, strict=True)):
                log = device.log.bind(connector=key.name)
                edid = partial(answer_edid, self._hypervisor, device.domid, output, key.name, key.width, key.height)
                screen = device.name or device.domid, device.number, index
                connector = Connector(
                    index,
                    output,
                    buffers,
                    edid,
                    (key.width, key.height),
                    device.quota,
                    log,
                    session.broken,
                    screen,
                    blanked=screen in self._blanked,
                )
                self._open_rings(device.domid, key, connector, stack)
                session.connectors.append(connector)
            self._drop_parts(device)
            device.parts = session.connectors
            # A frontend that has begun anew meanwhile: references may name other pages by now.
            if await self._read_keys(device, guest) != keys:
                raise Refused("the frontend has published other rings meanwhile")
            self._served[device.path] = keys
            stack.callback(self._served.pop, device.path)
            await session.run(task_status)

    def _keep_traces(self, device: Device, connectors: list[Connector], reason: FrontendBroken) -> None:
        epoch = Trace.epoch()
        guest = device.name or f"domain{device.domid}"
        for connector in connectors:
            last = list(trace_lines(connector.trace.octets(LOGGED), epoch))
            device.log.warning("last requests", connector=connector.output.name, requests=last)
        pieces = (
            (
                TraceHeader(escape(guest), escape(connector.output.name), epoch, escape(str(reason))),
                connector.trace.octets(),
            )
            for connector in connectors
        )
        self._traces.keep(escape(guest), device.number, pieces)

    def _claim(self, device: Device, claimant: Claimant, key: ConnectorKeys, stack: AsyncExitStack) -> Output:
        try:
            device.quota.take("connectors")
            stack.callback(device.quota.give, "connectors")
            output = self._sink.claim(key.name, key.width, key.height, claimant)
        except (OutputUnavailable, RequestError) as error:
            raise Refused(str(error)) from error
        stack.push_async_callback(output.release)
        return output

    def _open_rings(self, domid: int, key: ConnectorKeys, connector: Connector, stack: AsyncExitStack) -> None:
        """Map a connector's pages and bind its ports. The stack releases them, after the connector has been stopped."""
        pages = []
        for ref in (key.req_ring_ref, key.evt_ring_ref):
            page = self._hypervisor.map_page(domid, ref, writable=True)
            stack.callback(page.close)
            pages.append(page)
        channels = []
        # The frontend never notifies on its event port.
        for port, fired in ((key.req_event_channel, connector.kicked), (key.evt_event_channel, _nothing)):
            channel = self._hypervisor.bind(domid, port, fired)
            stack.callback(channel.close)
            channels.append(channel)
        connector.start(BackControlRing(pages[0]), channels[0], BackEventPage(pages[1]), channels[1])

    async def _read_keys(self, device: Device, guest: GuestSettings) -> list[ConnectorKeys]:
        """The device's connectors, 0 upwards. Raises Refused for a missing or wrong node."""
        found: list[ConnectorKeys] = []
        while True:
            index = len(found)
            try:
                await device.store.read(f"{device.frontend}/{index}/req-ring-ref")
            except NoEntry:
                break
            except StoreError as error:
                raise Refused(f"cannot read connector {index}: {error}") from error
            if index == MAX_CONNECTORS:
                raise Refused(f"the frontend has published more than {MAX_CONNECTORS} connectors")
            found.append(await self._read_connector(device, guest, index))
        if not found:
            raise Refused("the frontend has published no connector")
        refs = [ref for key in found for ref in (key.req_ring_ref, key.evt_ring_ref)]
        ports = [port for key in found for port in (key.req_event_channel, key.evt_event_channel)]
        if len(set(refs)) < len(refs) or len(set(ports)) < len(ports):
            raise Refused("the frontend has published one page or one event channel twice")
        return found

    async def _name(self, device: Device, guest: GuestSettings, index: int) -> str:
        """The output for a connector: the configuration's for this guest, else the toolstack's. Raises Refused."""
        if guest.connectors:
            if index >= len(guest.connectors):
                raise Refused(f"the configuration gives this guest {len(guest.connectors)} connectors, it has more")
            return guest.connectors[index]
        name = await self._trusted(device, f"{index}/unique-id")
        text = name.decode("utf-8", "replace")
        if not text or len(text) > MAX_NAME or not text.isprintable():
            raise Refused(f"{index}/unique-id is no name: {name[:MAX_NAME]!r}")
        return text

    async def _read_connector(self, device: Device, guest: GuestSettings, index: int) -> ConnectorKeys:
        text = await self._name(device, guest, index)
        resolution = await self._trusted(device, f"{index}/resolution")
        sides = [parse_number(side, 16384) for side in resolution.split(b"x")]
        if len(sides) != 2 or not sides[0] or not sides[1]:
            raise Refused(f"{index}/resolution is not WIDTHxHEIGHT: {resolution[:MAX_NAME]!r}")
        return ConnectorKeys(text, sides[0], sides[1], *await self._rings(device, index))

    async def _rings(self, device: Device, index: int) -> tuple[int, int, int, int]:
        """Where a connector's rings are: req-ring-ref, req-event-channel, evt-ring-ref, evt-event-channel. Raises Refused."""
        req_ref, req_port, evt_ref, evt_port = [await self._number(device, f"{index}/{key}") for key in self.published]
        return req_ref, req_port, evt_ref, evt_port

    async def _number(self, device: Device, key: str) -> int:
        value = await self._node(device, key)
        number = parse_number(value)
        if number is None:
            raise Refused(f"{key} is no number: {value[:MAX_NAME]!r}")
        return number

    async def _node(self, device: Device, key: str) -> bytes:
        try:
            return await device.store.read(f"{device.frontend}/{key}")
        except StoreError as error:
            raise Refused(f"cannot read {key}: {error}") from error

    async def _trusted(self, device: Device, key: str, missing: bytes | None = None) -> bytes:
        """A node of the frontend's directory that the toolstack wrote. Raises Refused."""
        found = await device.read_trusted(f"{device.frontend}/{key}", key)
        if found is not None:
            return found[0]
        if missing is not None:
            return missing
        raise Refused(f"{key} is missing")


def _nothing() -> bool:
    return False


class _Session:
    """A connected device: its connectors at work."""

    def __init__(self, shut_off: Callable[[list[Connector], FrontendBroken], None]) -> None:
        self.connectors: list[Connector] = []
        self._shut_off = shut_off
        self._failed = trio.Event()
        self._reason = FrontendBroken("")

    def broken(self, reason: FrontendBroken) -> None:
        """The frontend broke a rule that leaves nothing to answer: the device ends, this device only."""
        if not self._failed.is_set():
            self._reason = reason
            self._failed.set()
            self._shut_off(self.connectors, reason)

    async def _rescue(self) -> None:
        """Look now and then for requests whose notification was lost. None should ever be; each is counted and logged."""
        while True:
            await trio.sleep(RESCUE)
            for connector in self.connectors:
                connector.rescue()

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Raises FrontendBroken."""
        try:
            async with trio.open_nursery() as nursery:
                for connector in self.connectors:
                    nursery.start_soon(connector.run)
                task_status.started()
                for connector in self.connectors:  # what came before we were there
                    connector.resume()
                nursery.start_soon(self._rescue)
                await self._failed.wait()
                raise self._reason
        finally:
            for connector in self.connectors:
                connector.stop()
