"""The daemon: builds everything from the settings, and runs the root of all tasks."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from displbe import __version__
from displbe.backend.guests import Guests
from displbe.backend.quota import Quotas, Total
from displbe.backend.supervisor import Supervisor
from displbe.commands import Commands
from displbe.config import RELOADABLE, ConfigError, Settings, differences, load
from displbe.display.device import DisplayDriver
from displbe.input.device import InputDriver
from displbe.input.evdev.devices import EvdevDevices
from displbe.input.evdev.nodes import DeviceNodes, SystemNodes
from displbe.input.focus import InputFocus
from displbe.input.focus_file import FocusFile
from displbe.input.key_repeater import AutoRepeat
from displbe.ops import log
from displbe.ops.control import Control
from displbe.ops.lag import LoopLag
from displbe.ops.service_manager import ServiceManager
from displbe.ops.status import PumpStatus
from displbe.ops.text import escape
from displbe.ops.traces import TraceFiles, directory_of
from displbe.pump.native import Pump, open_pump
from displbe.resources import ProcessLimits, process_limits
from displbe.shortage import is_shortage, shortage
from displbe.sinks.base import Sink
from displbe.sinks.registry import MissingPackage, how_to_install, make_sink, mappings
from displbe.threads import NoThread, run_in_thread
from displbe.xen.port import Hypervisor

if TYPE_CHECKING:
    from displbe.ops.metrics import Metrics

__all__ = ["Daemon"]

STATUS_PERIOD: Final = 5.0
"""Seconds between two STATUS lines."""
_log = structlog.get_logger("displbe.daemon")


class Daemon:
    """A hypervisor, a sink, input devices, and the guests that use them. Raises sinks.registry.MissingPackage."""

    def __init__(
        self,
        settings: Settings,
        hypervisor: Hypervisor,
        service_manager: ServiceManager | None = None,
        nodes: DeviceNodes | None = None,
        runtime: Path | None = None,
        limits: ProcessLimits | None = None,
    ) -> None:
        """`runtime` is a directory for files that the next daemon reads; None: nothing is kept. `limits` are those of this process."""
        self.hypervisor = hypervisor
        sink_settings = getattr(settings, settings.sink)
        self.sink: Sink = make_sink(settings.sink, sink_settings)
        self.pump, pump_status = _pump(settings, hypervisor)
        if self.pump is not None:
            self.sink.pump = self.pump
            hypervisor.use_pump(self.pump)
        total = Total(settings.xen.maptrack, mappings(sink_settings), limits or process_limits())
        self.quotas = Quotas(settings.limits, total, self.pump)
        traces = TraceFiles(directory_of(settings.log.traces))
        self._guests = guests = Guests(settings.guest)
        displays = DisplayDriver(hypervisor, self.sink, guests, traces)
        self.displays = Supervisor(hypervisor.store, displays, self.quotas)
        self.focus = InputFocus(FocusFile(runtime, settings.input.focus))
        if nodes is None:
            _need_evdev(settings)
        self.evdev = EvdevDevices(settings.input, self.focus, nodes or SystemNodes(), self.sink.turn_of)
        repeats = AutoRepeat(
            settings.input.repeat_delay, 1 / settings.input.repeat_rate if settings.input.repeat_rate else 0
        )
        inputs = InputDriver(
            hypervisor, self.focus, self.evdev, self.sink.seats, guests, repeats, settings.input.locks()
        )
        self.inputs = Supervisor(hypervisor.store, inputs, self.quotas)
        self.lag = LoopLag()
        """The clock for the loop that runs this daemon, which measures the loop's lag."""
        self.commands = Commands(
            hypervisor,
            self.sink,
            settings.sink,
            self.displays,
            self.inputs,
            guests,
            self.quotas,
            self.focus,
            self.lag,
            pump_status,
        )
        self._metrics = _metrics(settings, self.commands)
        self._service_manager = service_manager or ServiceManager({})
        self._settings = settings
        self._reloading = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; then close all devices, and release everything that belongs to guests.

        `started` is called after the first look at XenStore.
        """
        self._log_abilities()
        async with self._pumping(), trio.open_nursery() as nursery:
            services = await nursery.start(self._services)
            try:
                async with trio.open_nursery() as guests:
                    await guests.start(self.displays.run)
                    await guests.start(self.inputs.run)
                    self._service_manager.notify("READY=1", "STATUS=serving")
                    guests.start_soon(self._notify_status)
                    _log.info("ready")
                    task_status.started()
                    try:
                        await self._feed_watchdog()
                    finally:
                        self._service_manager.notify("STOPPING=1")
            finally:
                services.cancel()
        _log.info("displbe ends")

    @asynccontextmanager
    async def _pumping(self) -> AsyncIterator[None]:
        """Run the pump during the block, if there is one. If no thread can be started for it, Python serves all flips."""
        async with AsyncExitStack() as stack:
            if self.pump is not None:
                try:
                    await stack.enter_async_context(self.pump.running())
                    self.commands.pump = PumpStatus("on", self.pump.without_priority)
                except NoThread as error:
                    _log.warning("the pump does not run: Python serves all flips", reason=str(error))
                    self.pump = self.sink.pump = self.quotas.pump = None
                    self.hypervisor.use_pump(None)
                    self.commands.pump = PumpStatus("missing", escape(str(error)))
            yield

    async def _services(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Run XenStore, event channels and screens. They outlive the guests' tasks, which need them to close their devices."""
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                if self._metrics is not None:
                    nursery.start_soon(self._metrics.run)
                await nursery.start(Control(self._settings.control, self.commands.table()).run)
                await nursery.start(self.hypervisor.run)
                await nursery.start(self.sink.run)
                await nursery.start(self.evdev.run)
                scope.shield = True  # not before: a service that is still starting must not keep the daemon from ending
                task_status.started(scope)

    async def _feed_watchdog(self) -> None:
        """Feed systemd's watchdog from the loop that serves the rings. When the loop or the pump hangs, the watchdog fires."""
        while True:
            await trio.sleep(self._service_manager.watchdog_interval or math.inf)
            if self.pump is not None:
                self.pump.wait_for_step()
            self._service_manager.notify("WATCHDOG=1")

    async def _notify_status(self) -> None:
        """Send systemd the status that `systemctl status` shows, every STATUS_PERIOD seconds."""
        while self._service_manager.is_present:
            try:
                self._service_manager.notify(f"STATUS={(await self.commands.status()).summary()}")
            except Exception as error:  # it costs this line; the guests go on
                _log.warning(
                    "the status line of the service is not updated",
                    reason=shortage(error),
                    exc_info=not is_shortage(error),
                )
            await trio.sleep(STATUS_PERIOD)

    async def reload(self, path: str) -> None:
        """Read the configuration again, and apply the keys that can change while guests are connected.

        An error is logged, and nothing changes. A worker thread reads the file: a slow disk or an odd file must not stop the rings, nor
        the watchdog.
        """
        async with self._reloading:
            self._service_manager.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                self._apply(await run_in_thread(load, path, abandon_on_cancel=True))
            except (ConfigError, MissingPackage, OSError) as error:
                _log.error("configuration not reloaded: the old one stays", reason=shortage(error))
            self._service_manager.notify("READY=1")

    def _apply(self, wanted: Settings) -> None:
        """Apply the RELOADABLE keys. Raises MissingPackage; nothing is applied then."""
        _need_evdev(wanted)
        changed = differences(self._settings, wanted)
        applied = [key for key in changed if key.startswith(tuple(RELOADABLE))]
        log.set_level(wanted.log.level)
        self.quotas.limits = wanted.limits
        self._guests.replace(wanted.guest)
        if "input.focus" in changed:
            self.focus.configure(wanted.input.focus)
        # Keys that were not applied keep their old values, so that the next reload reports them again.
        self._settings = msgspec.structs.replace(
            self._settings,
            limits=wanted.limits,
            guest=wanted.guest,
            log=msgspec.structs.replace(self._settings.log, level=wanted.log.level),
            input=msgspec.structs.replace(self._settings.input, focus=wanted.input.focus),
        )
        _log.warning("configuration reloaded", applied=applied, takes_a_restart=sorted(set(changed) - set(applied)))

    def _log_abilities(self) -> None:
        abilities = self.hypervisor.abilities
        _log.info(
            "displbe starts",
            version=__version__,
            sink=self._settings.sink,
            dmabuf_export=abilities.dmabuf_export,
            dmabuf_import=abilities.dmabuf_import,
            reason=abilities.reason or None,
        )


def _pump(settings: Settings, hypervisor: Hypervisor) -> tuple[Pump | None, PumpStatus]:
    """Return the pump, None if there is none, and its status."""
    if settings.daemon.pump == "off":
        return None, PumpStatus("off", 'the configuration says [daemon] pump = "off"')
    if settings.sink != "drm":
        return None, PumpStatus("off", 'the pump serves flips of sink = "drm" only')
    pump, reason = open_pump(hypervisor.system_calls())
    if pump is None:
        _log.info("no pump: Python serves all flips, which takes more CPU time", reason=reason)
        return None, PumpStatus("missing", escape(reason))
    return pump, PumpStatus("on", "")


def _metrics(settings: Settings, commands: Commands) -> Metrics | None:
    """Return the metrics if the configuration wants them. Raises MissingPackage."""
    wanted = settings.metrics
    if not (wanted.textfile or wanted.socket or wanted.listen):
        return None
    if find_spec("prometheus_client") is None:
        raise MissingPackage("metrics need prometheus-client: " + how_to_install("metrics", "prometheus_client"))
    from displbe.ops.metrics import Metrics

    return Metrics(wanted, commands.status)


def _need_evdev(settings: Settings) -> None:
    """Raise MissingPackage when guests may use devices of this machine and the package that opens them is missing."""
    named = settings.input.devices or any(guest.input for guest in settings.guest.values())
    if named and find_spec("evdev") is None:
        raise MissingPackage("guests' input devices need evdev: " + how_to_install("input", "evdev"))
