"""The commands that an operator may send over the control socket (ops.control)."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import TypeAlias, TypeVar

import msgspec
import trio

from displbe import __version__
from displbe.backend.device import Device
from displbe.backend.guests import Guests
from displbe.backend.quota import Quota, Quotas
from displbe.backend.supervisor import Supervisor
from displbe.display.connector import Connector
from displbe.display.device import DisplayDevice
from displbe.display.trace import Trace
from displbe.input.device import InputDevice
from displbe.input.focus import InputFocus
from displbe.ops import log
from displbe.ops.control import Answer, CommandError, Request
from displbe.ops.lag import LoopLag
from displbe.ops.status import Abilities, GuestStatus, Loop, PumpStatus, Status, Usage
from displbe.ops.text import escape
from displbe.sinks.base import DeviceConnector, OutputUnavailable, Sink, SinkError
from displbe.wire.errors import RequestError
from displbe.xen.memory import close_in_thread
from displbe.xen.port import Hypervisor, HypervisorError

__all__ = ["Commands"]

AnyDevice: TypeAlias = Device[DisplayDevice] | Device[InputDevice]
C = TypeVar("C", Connector, DeviceConnector)


class Commands:
    """The operator's commands, carried out on the parts of the daemon."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        sink: Sink,
        sink_name: str,
        displays: Supervisor[DisplayDevice],
        inputs: Supervisor[InputDevice],
        guests: Guests,
        quotas: Quotas,
        focus: InputFocus,
        lag: LoopLag,
        pump: PumpStatus,
    ) -> None:
        self._hypervisor = hypervisor
        self._sink = sink
        self._sink_name = sink_name
        self._displays = displays
        self._inputs = inputs
        self._guests = guests
        self._quotas = quotas
        self._input_focus = focus
        self._lag = lag
        self.pump = pump
        """Whether the pump runs, and what it lacks."""
        self._begun = time.monotonic()

    def table(self) -> Mapping[str, Callable[[Request], Awaitable[Answer]]]:
        """Return the commands by their names."""
        return {
            "status": self._status,
            "trace": self._trace,
            "screenshot": self._screenshot,
            "blank": self._blank,
            "unblank": self._unblank,
            "reopen": self._reopen,
            "kick": self._kick,
            "focus": self._focus,
        }

    # Status

    async def status(self) -> Status:
        """Return the status of the whole daemon. Between two connectors, the rings are served."""
        guests = [await self._guest(domid, quota) for domid, quota in sorted(self._quotas.guests.items())]
        total = self._quotas.total
        return Status(
            version=__version__,
            uptime=time.monotonic() - self._begun,
            sink=self._sink_name,
            mapped=Usage(total.pages, total.limit),
            held=msgspec.structs.asdict(self._hypervisor.ledger),
            files=_files(),
            loop=Loop(self._lag.worst(), log.dropped()),
            abilities=Abilities(_host(self._hypervisor), dict(self._sink.abilities())),
            focus=escape(self._input_focus.preferred),
            input_with_host=self._input_focus.is_with_host,
            guests=tuple(guests),
            threads=Usage(threading.active_count(), total.process.threads),
            copies=Usage(total.pools["memory"].used, total.pools["memory"].limit),
            pump=self.pump,
        )

    async def _guest(self, domid: int, quota: Quota) -> GuestStatus:
        devices = [device for device in self._devices() if device.domid == domid]
        return GuestStatus(
            domid=domid,
            name=escape(next((device.name for device in devices if device.name), "")),
            quota={kind: Usage(used, getattr(quota.limits, kind)) for kind, used in quota.used.items()},
            devices=tuple([await device.status() for device in devices]),
        )

    async def _status(self, request: Request) -> Answer:
        return Answer(msgspec.json.encode(await self.status()))

    # The guest and the connectors that a request names

    def _devices(self) -> Iterator[AnyDevice]:
        yield from self._displays.devices.values()
        yield from self._inputs.devices.values()

    def _of_guest(self, request: Request) -> list[AnyDevice]:
        """Return the devices of the guest that the request names. Raises CommandError."""
        found = [device for device in self._devices() if _is_of(request.guest, device)]
        if not request.guest or not found:
            guests = sorted({device.name or str(device.domid) for device in self._devices()})
            known = f"there are: {', '.join(map(escape, guests))}" if guests else "there is none"
            raise CommandError(f"no guest {escape(request.guest)}; {known}")
        if len({device.domid for device in found}) > 1:
            raise CommandError(f"more than one guest is called {escape(request.guest)}: use its domid")
        return found

    def _whole_guest(self, request: Request) -> list[AnyDevice]:
        """Return the devices of the guest, for a command that takes no connector. Raises CommandError."""
        if request.connector:
            raise CommandError(f"{request.command} is for a whole guest, not for one of its connectors")
        return self._of_guest(request)

    def _displays_of(self, request: Request) -> list[DisplayDevice]:
        """Return the displays of the guest that the request names. Raises CommandError."""
        self._of_guest(request)
        return [device.service for device in self._displays.devices.values() if _is_of(request.guest, device)]

    def _connectors(self, request: Request) -> list[tuple[DisplayDevice, Connector]]:
        """Return the connectors that the request names, of the guest's last connection. Raises CommandError."""
        displays = self._displays_of(request)
        connectors = [(display, connector) for display in displays for connector in display.connectors]
        return _named(request, connectors, "the guest has never been connected")

    # The other commands

    async def _trace(self, request: Request) -> Answer:
        _, connector = self._connectors(request)[0]
        await trio.lowlevel.checkpoint()
        connector.peek()
        trace = connector.requests.trace
        facts: dict[str, int | float | str] = {
            "connector": escape(connector.name),
            "requests": trace.count,
            "epoch": Trace.epoch(),
        }
        return Answer(trace.records(), facts)

    async def _screenshot(self, request: Request) -> Answer:
        for device in self._of_guest(request):
            if not self._guests.allows_pictures(device.name):
                whose = "this guest" if device.name else "some guests, and this one's name is not known here"
                raise CommandError(f"the configuration allows no screenshots of {whose}")
        served = [connector for _, connector in self._connectors(request) if connector.is_served]
        if not served:
            raise CommandError("the guest is not connected")
        try:
            shape, picture = await served[0].screen.picture()
        except (RequestError, HypervisorError) as error:
            raise CommandError(f"no picture: {error}") from error
        held = AsyncExitStack()
        held.push_async_callback(close_in_thread, picture.close)
        facts = {key: getattr(shape, key) for key in ("width", "height", "fourcc", "stride")}
        return Answer(held.enter_context(picture.borrow()), facts, held)

    async def _blank(self, request: Request) -> Answer:
        for display, connector in self._connectors(request):
            await display.blank(connector)
        return Answer()

    async def _unblank(self, request: Request) -> Answer:
        for display, connector in self._connectors(request):
            try:
                await display.unblank(connector)
            except SinkError as error:
                raise CommandError(f"{escape(connector.name)} stays dark: {error}") from error
        return Answer()

    async def _reopen(self, request: Request) -> Answer:
        """Open windows of the guest again. The guest need not be connected."""
        await trio.lowlevel.checkpoint()
        displays = self._displays_of(request)
        connectors = [(display, each) for display in displays for each in display.device_connectors.values()]
        failures: list[str] = []
        for display, connector in _named(request, connectors, "the guest has no display"):
            try:
                display.reopen(connector)
            except OutputUnavailable as error:
                failures.append(f"{escape(connector.name)}: {error}")
        if failures:
            raise CommandError("; ".join(failures))
        return Answer()

    async def _kick(self, request: Request) -> Answer:
        devices = self._whole_guest(request)
        await trio.lowlevel.checkpoint()
        for device in devices:
            device.kick()
        return Answer()

    async def _focus(self, request: Request) -> Answer:
        device = self._whole_guest(request)[0]
        await trio.lowlevel.checkpoint()
        self._input_focus.give(device.name or str(device.domid))
        return Answer()


def _files() -> Usage:
    """Return the number of open files, and its limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        return Usage(len(os.listdir("/proc/self/fd")), limit)
    except OSError:  # EMFILE: to count the files, one more must be opened
        return Usage(limit, limit)


def _named(request: Request, connectors: list[tuple[DisplayDevice, C]], missing: str) -> list[tuple[DisplayDevice, C]]:
    """Return those of the guest's connectors that the request names. Raises CommandError; `missing` says why there are none at all."""
    if not connectors:
        raise CommandError(missing)
    found = [each for each in connectors if request.connector in ("", each[1].name, str(each[1].index))]
    if not found:
        names = ", ".join(escape(connector.name) for _, connector in connectors)
        raise CommandError(f"no such connector; there are: {names}")
    return found


def _is_of(guest: str, device: AnyDevice) -> bool:
    """Return whether a device belongs to the guest with this name or domid."""
    return guest in (device.name, str(device.domid))


def _host(hypervisor: Hypervisor) -> dict[str, str]:
    abilities = hypervisor.abilities
    answers = {
        "guests' pages as dma-bufs": "yes" if abilities.dmabuf_export else "no",
        "dma-bufs as guests' pages": "yes" if abilities.dmabuf_import else "no",
    }
    return answers | ({"because": abilities.reason} if abilities.reason else {})
