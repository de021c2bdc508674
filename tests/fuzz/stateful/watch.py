"""What is watched while a run goes on, and what must be left of it at its end."""

from __future__ import annotations

import gc
import os
import socket
import sys
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from displbe.daemon import Daemon
from displbe.sinks.wayland.sink import WaylandSink
from displbe.xen.port import Ledger

from .faults import is_injected
from .virtual import Steps
from .world import GOOD, World, WrongBehaviour

__all__ = ["Log", "Manager", "Watch", "files", "settled"]

EXPECTED: Final = frozenset(
    {
        "device shut off",
        "cannot connect",
        "configuration not reloaded: the old one stays",
        "a request waited without a notification",
        "the compositor or the card still uses a buffer of a device that ends",
        "a watch could not be set again; its changes are not seen",
        "cannot open the socket: its clients are not served",
        "device not allowed by [input] devices: the guest gets no events from it",
    }
)
"""The log's lines of level error that guests and the machine may cause. None of them has a traceback."""
NEVER_GOOD: Final = frozenset({"device shut off", "cannot connect", "a request waited without a notification"})
"""Those that must not be about the protected guest."""
LOOK: Final = 0.25
"""Seconds between two looks."""
BUSY: Final = 40_000
"""Steps of all tasks in one look's time. More means that something goes round in circles."""
WATCHDOG: Final = 2.0
"""Seconds within which the service manager's watchdog must be fed. Its own limit is much longer."""
SETTLE: Final = 60.0
"""Seconds after which nothing of guests that have gone may be left."""
OURS: Final = (
    "displbe.backend",
    "displbe.display",
    "displbe.input",
    "displbe.sinks",
    "displbe.xen.memory",
    "displbe.xen.gntdev",
    "displbe.ops",
)
"""The packages whose objects are counted. Simulated guests use others, too."""
OF_MODELS: Final = ("displbe.sinks.drm.device.", "displbe.sinks.drm.properties.")
"""Types whose objects the model of a card keeps."""


class Log:
    """The daemon's log: a processor of structlog that keeps what must not be logged."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if method in ("error", "exception", "critical"):
            self._judge(event)
        raise structlog.DropEvent

    def _judge(self, event: MutableMapping[str, Any]) -> None:
        text, error = str(event.get("event")), event.get("exc_info")
        if error is not None:
            error = error if isinstance(error, BaseException) else sys.exc_info()[1]
            if error is not None and not is_injected(error):
                self.wrong.append(f"an error is logged: {text}\n{''.join(traceback.format_exception(error))}")
        elif text not in EXPECTED or (text in NEVER_GOOD and event.get("domid") == GOOD):
            self.wrong.append(f"an error is logged: {dict(event)}")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the log, and Python's reports of exceptions that nothing handles, while the block lasts."""
        structlog.configure(processors=[self])
        hook = sys.unraisablehook

        def unraisable(report: Any) -> None:
            made = tracemalloc.get_object_traceback(report.object)  # with python -X tracemalloc=20
            where = "\n".join(made.format()) if made is not None else ""
            self.wrong.append(f"not raised: {report.exc_value!r} in {report.object!r}\n{where}")

        sys.unraisablehook = unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            structlog.reset_defaults()


class Manager:
    """The service manager's socket: when the watchdog was fed last."""

    def __init__(self, path: Path) -> None:
        self.environment = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(round(WATCHDOG * 1e6))}
        self.fed = 0.0
        """In seconds of trio's clock."""
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._path = path

    async def listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Receive until cancelled."""
        with self._socket:
            await self._socket.bind(str(self._path))
            task_status.started()
            while True:
                if b"WATCHDOG=1" in await self._socket.recv(4096):
                    self.fed = trio.current_time()


class Watch:
    """The rules that hold at any time."""

    def __init__(self, world: World, log: Log, manager: Manager, steps: Steps) -> None:
        self._world = world
        self._log = log
        self._manager = manager
        self._steps = steps
        self.peak = 0
        """The most steps of all tasks between two looks."""

    async def run(self) -> None:
        """Look regularly. Raises WrongBehaviour."""
        while True:
            before = self._steps.count
            await trio.sleep(LOOK)
            self.peak = max(self.peak, self._steps.count - before)
            if self._steps.count - before > BUSY:
                raise WrongBehaviour(f"{self._steps.count - before} steps of all tasks in {LOOK} s")
            self.look()

    def look(self) -> None:
        """Check the rules now. Raises WrongBehaviour."""
        world, faults = self._world, self._world.faults
        if self._log.wrong:
            raise WrongBehaviour(self._log.wrong[0])
        since = max(self._manager.fed, faults.ended_at)
        if not faults.active and trio.current_time() - since > 2 * WATCHDOG:
            raise WrongBehaviour(f"the watchdog was not fed for {trio.current_time() - since:.1f} s")
        daemon = world.daemon
        total = daemon.quotas.total
        if total.pages != sum(quota.used["pages"] for quota in daemon.quotas.guests.values()):
            raise WrongBehaviour("the pages of all guests are not the sum of their pages")
        ledger = world.hypervisor.ledger
        for name, pool in total.pools.items():
            if pool.used < 0:
                raise WrongBehaviour(f"all guests together hold {pool.used} of the {name}")
        for quota in daemon.quotas.guests.values():
            for kind, used in quota.used.items():
                if not 0 <= used <= max(getattr(quota.limits, kind), 0):
                    raise WrongBehaviour(f"a guest holds {used} {kind} of {getattr(quota.limits, kind)}")
        if min(ledger.ports, ledger.pages, ledger.buffers, ledger.buffer_pages) < 0:
            raise WrongBehaviour(f"the ledger is negative: {ledger}")
        for device in daemon.displays.devices.values():
            for connector in device.service.connectors:
                if connector.is_served and connector.screen.output.is_released:
                    raise WrongBehaviour(
                        f"a connector works on an output that it has given back: domain {device.domid}, {connector.name}"
                    )


def _held(daemon: Daemon) -> list[str]:
    """Return what the daemon holds for guests, apart from the ledger."""
    held = [f"device {key}" for key in (*daemon.displays.devices, *daemon.inputs.devices)]
    held += [f"quota of {domid}" for domid in daemon.quotas.guests]
    claimed: Any = daemon.sink.clients if isinstance(daemon.sink, WaylandSink) else getattr(daemon.sink, "outputs", {})
    held += [f"output {name}" for name in claimed]
    held += [f"{pool.used} of the {name}" for name, pool in daemon.quotas.total.pools.items() if pool.used]
    return held


async def settled(world: World, log: Log) -> None:
    """Wait until nothing is left of any guest. Raises WrongBehaviour."""
    with trio.move_on_after(SETTLE):
        while _held(world.daemon) or world.hypervisor.ledger != Ledger():
            await trio.sleep(0.05)
    held = _held(world.daemon)
    if world.hypervisor.ledger != Ledger():
        held.append(str(world.hypervisor.ledger))
    for domain in world.xen.domains.values():
        if any(grant.mapped for grant in domain.grants.values()):
            held.append(f"grants of domain {domain.domid}")
    if held:
        raise WrongBehaviour(f"still held after all guests have gone: {', '.join(held)}")
    if log.wrong:
        raise WrongBehaviour(log.wrong[0])


def objects() -> Counter[str]:
    """Count the daemon's objects, by their types."""
    gc.collect()
    found = (type(one) for one in gc.get_objects())
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in found)
    return Counter(name for name in names if name.startswith(OURS) and not name.startswith(OF_MODELS))


def files() -> list[str]:
    """Return the open files, without the memory of simulated domains, which is freed with its last reference."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("/memfd:dom"):
                found.append(target.partition(":[")[0])
    return sorted(found)
