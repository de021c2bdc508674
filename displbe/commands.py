"""What an operator may ask of the daemon, over the control socket (ops.control)."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import msgspec
import trio

from displbe import __version__
from displbe.backend.device import Device
from displbe.backend.guests import allows_pictures
from displbe.backend.quota import Quota, Quotas
from displbe.backend.supervisor import Supervisor
from displbe.display.connector import Connector
from displbe.display.device import DisplayDriver
from displbe.display.trace import Trace
from displbe.input.focus import InputFocus
from displbe.ops import log
from displbe.ops.control import Answer, CommandError, Request
from displbe.ops.lag import LoopLag
from displbe.ops.status import Abilities, DeviceStatus, GuestStatus, Loop, Status, Usage
from displbe.ops.text import escape
from displbe.sinks.base import Sink, SinkError
from displbe.wire.errors import RequestError
from displbe.xen.port import Hypervisor, HypervisorError

__all__ = ["Commands"]


class Commands:
    """The parts of the daemon, as an operator sees them."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        sink: Sink,
        sink_name: str,
        driver: DisplayDriver,
        supervisors: list[Supervisor],
        quotas: Quotas,
        focus: InputFocus,
        lag: LoopLag,
    ) -> None:
        self._hypervisor = hypervisor
        self._sink = sink
        self._sink_name = sink_name
        self._driver = driver
        self._supervisors = supervisors
        self._quotas = quotas
        self._input_focus = focus
        self._lag = lag
        self._begun = time.monotonic()

    def table(self) -> Mapping[str, Callable[[Request], Awaitable[Answer]]]:
        """The commands by their names."""
        return {
            "status": self._status,
            "trace": self._trace,
            "screenshot": self._screenshot,
            "blank": self._blank,
            "unblank": self._unblank,
            "kick": self._kick,
            "focus": self._focus,
        }

    # Status

    async def status(self) -> Status:
        """All there is to say. The rings have their turn after each connector."""
        guests = [await self._guest(domid, quota) for domid, quota in sorted(self._quotas.guests.items())]
        total = self._quotas.total
        return Status(
            version=__version__,
            uptime=time.monotonic() - self._begun,
            sink=self._sink_name,
            mapped=Usage(total.pages, total.limit),
            held=msgspec.structs.asdict(self._hypervisor.ledger),
            files=Usage(len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            loop=Loop(self._lag.worst(), log.dropped()),
            abilities=Abilities(_host(self._hypervisor), dict(self._sink.abilities())),
            focus=escape(self._input_focus.preferred),
            guests=tuple(guests),
        )

    async def _guest(self, domid: int, quota: Quota) -> GuestStatus:
        devices = [device for device in self._devices() if device.domid == domid]
        return GuestStatus(
            domid=domid,
            name=escape(next((device.name for device in devices if device.name), "")),
            quota={kind: Usage(used, getattr(quota.limits, kind)) for kind, used in quota.used.items()},
            devices=tuple([await self._device(device) for device in devices]),
        )

    async def _device(self, device: Device) -> DeviceStatus:
        connectors = []
        for part in device.served:
            connectors.append(part.status())
            await trio.lowlevel.checkpoint()
        return device.status(tuple(connectors))

    async def _status(self, request: Request) -> Answer:
        return Answer(msgspec.json.encode(await self.status()))

    # Who is meant

    def _devices(self) -> Iterator[Device]:
        for supervisor in self._supervisors:
            yield from supervisor.devices.values()

    def _of_guest(self, request: Request) -> list[Device]:
        """The devices of the guest that is named. Raises CommandError."""
        found = [device for device in self._devices() if request.guest in (device.name, str(device.domid))]
        if not request.guest or not found:
            guests = sorted({device.name or str(device.domid) for device in self._devices()})
            known = f"there are: {', '.join(map(escape, guests))}" if guests else "there is none"
            raise CommandError(f"no guest {escape(request.guest)}; {known}")
        if len({device.domid for device in found}) > 1:
            raise CommandError(f"more than one guest is called {escape(request.guest)}: say its number")
        return found

    def _whole_guest(self, request: Request) -> list[Device]:
        """The same, where no connector can be meant. Raises CommandError."""
        if request.connector:
            raise CommandError(f"{request.command} is for a whole guest, not for one of its connectors")
        return self._of_guest(request)

    def _connectors(self, request: Request) -> list[Connector]:
        """The connectors that are meant. Raises CommandError."""
        parts: list[Any] = [part for device in self._of_guest(request) for part in device.parts]
        connectors = [part for part in parts if isinstance(part, Connector)]
        if not connectors:
            raise CommandError("the guest has never been connected")
        found = [c for c in connectors if request.connector in ("", c.output.name, str(c.index))]
        if not found:
            names = ", ".join(escape(connector.output.name) for connector in connectors)
            raise CommandError(f"no such connector; there are: {names}")
        return found

    def _connected(self, request: Request) -> list[Connector]:
        """The same, where they are served now."""
        found = [connector for connector in self._connectors(request) if connector.at_work]
        if not found:
            raise CommandError("the guest is not connected")
        return found

    # What is done

    async def _trace(self, request: Request) -> Answer:
        connector = self._connectors(request)[0]
        await trio.lowlevel.checkpoint()
        facts: dict[str, int | float | str] = {
            "connector": escape(connector.output.name),
            "requests": connector.trace.count,
            "epoch": Trace.epoch(),
        }
        return Answer(connector.trace.octets(), facts)

    async def _screenshot(self, request: Request) -> Answer:
        for device in self._of_guest(request):
            if not allows_pictures(self._driver.guests, device.name):
                whose = "this guest" if device.name else "some guests, and this one's name is not known here"
                raise CommandError(f"the configuration allows no screenshots of {whose}")
        connector = self._connected(request)[0]
        try:
            shape, picture = await connector.picture()
        except (RequestError, HypervisorError) as error:
            raise CommandError(f"no picture: {error}") from error
        return Answer(picture, {key: getattr(shape, key) for key in ("width", "height", "fourcc", "stride")})

    async def _blank(self, request: Request) -> Answer:
        for connector in self._connectors(request):
            await self._driver.blank(connector)
        return Answer()

    async def _unblank(self, request: Request) -> Answer:
        for connector in self._connectors(request):
            try:
                await self._driver.unblank(connector)
            except SinkError as error:
                raise CommandError(f"{escape(connector.output.name)} stays dark: {error}") from error
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


def _host(hypervisor: Hypervisor) -> dict[str, str]:
    abilities = hypervisor.abilities
    answers = {
        "guests' pages as dma-bufs": "yes" if abilities.dmabuf_export else "no",
        "dma-bufs as guests' pages": "yes" if abilities.dmabuf_import else "no",
    }
    return answers | ({"because": abilities.reason} if abilities.reason else {})
