"""The environment of a scenario: a simulated Xen, the whole daemon with a headless sink, and guests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import trio
from conformance.world import descriptors
from PIL import Image
from unit.drm_model import ModelDevice

from displbe.backend import device as backend_device
from displbe.backend.device import Device
from displbe.backend.guests import GuestSettings
from displbe.backend.quota import Limits
from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.display.device import DisplayDevice
from displbe.input.settings import InputSettings
from displbe.ops.settings import ControlSettings, LogSettings
from displbe.pump.settings import DaemonSettings
from displbe.sim.guest import FrontConnector, Guest
from displbe.sim.hypervisor import Grant, SimHypervisor, Xen
from displbe.sim.input import InputFrontend
from displbe.sim.toolstack import ConnectorSpec, Toolstack
from displbe.sinks.drm.output import DrmOutput
from displbe.sinks.headless.output import HeadlessOutput
from displbe.sinks.headless.settings import HeadlessSettings
from displbe.wire.displif import MESSAGE_SIZE, Request, encode_request
from displbe.wire.xenbus import State
from displbe.xen.port import Ledger
from displbe.xen.stale_devices import close_stale_displays

from .devices import SimNodes

__all__ = ["REFRESH", "World", "descriptors", "exchange", "flip_on", "spec", "until"]

REFRESH: Final = 1000.0
"""The screens' refreshes per second, high so that tests are fast."""


def spec(name: str = "HDMI-A-1", width: int = 64, height: int = 48) -> ConnectorSpec:
    """Return a small connector."""
    return ConnectorSpec(name, width, height)


async def until(what: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until a function returns true."""
    with trio.fail_after(timeout):
        while not what():
            await trio.sleep(0.002)


class World:
    """A machine with a daemon on it."""

    def __init__(
        self,
        xen: Xen,
        nursery: trio.Nursery,
        settings: Settings,
        folder: Path | None = None,
        commit: Callable[[int, Any], int] | None = None,
    ) -> None:
        self.xen = xen
        self.tools = Toolstack(xen.server)
        self.folder = folder
        """The runtime directory, which outlives a daemon."""
        self.settings = settings
        self.nodes = SimNodes()
        self._commit = commit
        self._nursery = nursery
        self._grants: list[Grant] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        folder: Path,
        *,
        outputs: list[str] | None = None,
        refresh: float = REFRESH,
        limits: Limits | None = None,
        guests: dict[str, GuestSettings] | None = None,
        traces: str = "auto",
        input: InputSettings | None = None,
        sink: Literal["headless", "drm"] = "headless",
        commit: Callable[[int, Any], int] | None = None,
        pump: Literal["auto", "off"] = "auto",
    ) -> AsyncIterator[World]:
        """Run a world. At its end, all guests must be gone, and none of their resources may be held. `commit` is that of the model of the
        card that the pump uses.
        """
        screens = HeadlessSettings(outputs=outputs or [], refresh=refresh)
        settings = Settings(
            sink=sink,
            daemon=DaemonSettings(pump=pump),
            headless=screens,
            limits=limits or Limits(),
            guest=guests or {},
            input=input or InputSettings(),
            log=LogSettings(traces=traces),
            control=ControlSettings(socket=str(folder / "control")),
        )
        async with Xen(folder).running() as xen, trio.open_nursery() as nursery:
            world = cls(xen, nursery, settings, folder, commit)
            await world.start_daemon()
            yield world
            await world.settled()
            await world.stop_daemon()
            assert world.hypervisor.ledger == Ledger()
            nursery.cancel_scope.cancel()

    # The daemon

    async def start_daemon(self) -> None:
        """Start a daemon, the first one or after the last one has ended."""
        hypervisor = self.xen.hypervisor(0)
        self.hypervisor: SimHypervisor = hypervisor
        if self._commit is not None:
            hypervisor.commit = self._commit
        self.daemon = Daemon(self.settings, hypervisor, nodes=self.nodes, runtime=self.folder)
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        await self._nursery.start(self._run_daemon)

    async def _run_daemon(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                await self.daemon.run(task_status=task_status)
        finally:
            self._ended.set()

    async def stop_daemon(self) -> None:
        """End the daemon as SIGTERM does."""
        self._scope.cancel()
        with trio.fail_after(3):
            await self._ended.wait()

    async def kill_daemon(self) -> None:
        """End the daemon as SIGKILL does: the process' resources are released, XenStore stays as it was."""
        timeout, backend_device.SHUTDOWN_TIMEOUT = backend_device.SHUTDOWN_TIMEOUT, 0.0  # type: ignore[misc]
        try:
            await self.stop_daemon()
        finally:
            backend_device.SHUTDOWN_TIMEOUT = timeout  # type: ignore[misc]

    async def begin(self) -> None:
        """Do the first steps of the next daemon's process."""
        assert self.folder is not None
        lock, store = self.folder / "gntdev", str(self.xen.server.socket_of(0))
        lock.touch()
        await trio.to_thread.run_sync(close_stale_displays, str(lock), store)

    def output(self, name: str = "HDMI-A-1") -> HeadlessOutput:
        """Return a guest's output."""
        found = self.daemon.sink.claimed(name)
        assert isinstance(found, HeadlessOutput)
        return found

    def picture(self, name: str = "HDMI-A-1") -> Image.Image | None:
        """Return what a guest's screen shows; None: it is off."""
        found = self.daemon.sink.claimed(name)
        if not isinstance(found, DrmOutput):
            return self.output(name).picture()
        assert found.pipe is not None
        assert isinstance(found.pipe.device, ModelDevice)
        return found.pipe.device.picture(found.pipe.crtc)

    def device(self, domid: int) -> Device[DisplayDevice]:
        """Return a guest's device 0."""
        return self.daemon.displays.devices[domid, 0]

    def held(self, domid: int) -> dict[str, int]:
        """Return the resources that a guest is charged for, without zeros."""
        return {kind: amount for kind, amount in self.device(domid).quota.used.items() if amount}

    async def settled(self) -> None:
        """Wait until the daemon has noticed that no guest is left. Check that it holds no guest's resources."""
        await until(lambda: not self.daemon.displays.devices and not self.daemon.inputs.devices)
        assert self.hypervisor.ledger == Ledger()
        assert self.daemon.quotas.guests == {}
        assert not any(grant.mapped for grant in self._grants)

    # Guests

    @contextlib.asynccontextmanager
    async def booted(
        self, domid: int, *connectors: ConnectorSpec, vkb: Mapping[str, str] | None = None, name: str = ""
    ) -> AsyncIterator[Guest]:
        """Run a guest from its creation to its end. Its kernel has not run yet."""
        async with Guest.booted(self.xen, domid, *connectors, vkb=vkb, name=name) as guest:
            try:
                yield guest
            finally:
                self._grants += guest.domain.grants.values()

    @contextlib.asynccontextmanager
    async def guest(self, domid: int, *connectors: ConnectorSpec) -> AsyncIterator[Guest]:
        """Run a guest whose display is connected."""
        async with self.booted(domid, *(connectors or (spec(),))) as guest:
            with trio.fail_after(30):
                await guest.display.connected.wait()
            yield guest

    @contextlib.asynccontextmanager
    async def typist(self, domid: int, unique_id: str, name: str = "", **nodes: str) -> AsyncIterator[InputFrontend]:
        """Run a guest with connected input. `nodes` are further nodes of its vkb line (`feature_abs_pointer="1"`)."""
        vkb = {"unique-id": unique_id, **{key.replace("_", "-"): value for key, value in nodes.items()}}
        async with self.booted(domid, vkb=vkb, name=name) as guest:
            with trio.fail_after(30):
                await guest.input.connected.wait()
            yield guest.input
            assert guest.input.oops is None
            assert guest.input.warnings == []

    def state(self, domid: int) -> State:
        """Return the backend's state in XenStore."""
        return State(int(self.tools.read(f"{self.tools.back(domid)}/state") or b"0"))

    def error(self, domid: int) -> str | None:
        """Return the `error` node."""
        value = self.tools.read(f"{self.tools.back(domid)}/error")
        return value.decode() if value is not None else None


async def exchange(connector: FrontConnector, message: bytes | Request) -> bytes:
    """Send 64 bytes unchanged except for the id. Return the response's 64 bytes as they are in the ring."""
    data = bytearray(message if isinstance(message, bytes) else encode_request(message))
    number = connector._next_id & 0xFFFF
    connector._next_id += 1
    data[0:2] = number.to_bytes(2, "little")
    slot = connector.ring._req_prod & 31
    if connector.ring.put(bytes(data)):
        connector.channel.notify()
    await until(lambda: number in connector._answers, timeout=3)
    connector._answers.pop(number)
    return connector.ring_page.copy(64 + slot * MESSAGE_SIZE, MESSAGE_SIZE)


@contextlib.asynccontextmanager
async def flip_on(guest: Guest, index: int = 0, width: int = 64, height: int = 48) -> AsyncIterator[list[float]]:
    """Let a guest flip between two buffers. The list gets the duration of each flip, in seconds."""
    display = guest.display
    buffers = [await display.create_framebuffer(width, height) for _ in range(2)]
    await display.show(index, buffers[0][1], width, height)
    times: list[float] = []
    ends = trio.Event()

    async def flip() -> None:
        while not ends.is_set():
            begun = time.perf_counter()
            await display.connectors[index].flip(buffers[len(times) % 2][1])
            times.append(time.perf_counter() - begun)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flip)
        yield times
        ends.set()
    await display.hide(index)
    for dbuf, fb, buffer in buffers:
        await display.destroy_framebuffer(dbuf, fb, buffer)
