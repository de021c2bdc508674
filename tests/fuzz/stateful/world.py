"""The machine of a run: a simulated Xen, the daemon, and what its actors share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

from displbe.config import Settings
from displbe.daemon import Daemon
from displbe.input.evdev.nodes import DeviceNodes
from displbe.ops.service_manager import ServiceManager
from displbe.sim.hypervisor import PORTS, Domain, SimHypervisor, Xen
from displbe.sim.toolstack import Toolstack
from displbe.wire.xenbus import State

from .faults import Faults
from .journal import Journal

__all__ = ["GOOD", "World", "WrongBehaviour"]

GOOD: Final = 1
"""The domain of the guest that nothing is done to."""
KINDS: Final = ("vdispl", "vinput")
"""The backend's directory of each kind of device."""
END: Final = 10.0
"""Seconds in which the backend must reach state 6: the toolstack waits as long."""


class WrongBehaviour(Exception):
    """The daemon did what it must not do; the text is one line."""


class _FreePorts(Iterator[int]):
    """The numbers of event channels that are free, so that many connections find some."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._last = 0

    def __next__(self) -> int:
        for _ in range(PORTS):
            self._last = self._last % (PORTS - 1) + 1
            if self._last not in self._domain.peers:
                return self._last
        raise MemoryError("no free event channel")


class World:
    """A Xen with a daemon. `settings` are the daemon's."""

    def __init__(self, xen: Xen, folder: Path, settings: Settings, faults: Faults, journal: Journal) -> None:
        self.xen = xen
        self.folder = folder
        self.settings = settings
        self.faults = faults
        self.journal = journal
        self.tools = Toolstack(xen.server)
        self.hypervisor: SimHypervisor = xen.hypervisor(0)
        self.daemon: Daemon
        self.touched: set[str] = set()
        """Names and domids of guests whose screens an operator has switched off, or whose devices the toolstack has changed."""
        self.meddled: set[int] = set()
        """The domains whose devices' nodes the toolstack has overwritten: their ends may take longer."""
        self.limits_changed = False
        """Whether a reload has changed limits, so that a guest that comes now may be refused."""
        self.guests: dict[int, str] = {}
        """The domains that run now, without the protected one, and their names."""
        self._next_domid = GOOD + 1
        self._ended: list[int] = []
        self._keep_ports(0)

    def _keep_ports(self, domid: int) -> None:
        domain = self.xen.domains[domid]
        domain._next_port = _FreePorts(domain)  # type: ignore[assignment]

    def make_daemon(self, manager: ServiceManager, runtime: Path, nodes: DeviceNodes) -> Daemon:
        """Make the daemon."""
        self.daemon = Daemon(self.settings, self.hypervisor, manager, nodes, runtime)
        return self.daemon

    def screen(self, name: str) -> str:
        """Return the sink's name of a screen. Cards have only four."""
        if self.settings.sink != "drm":
            return name
        return {"good-screen": "Virtual-1", "shared-0": "Virtual-3"}.get(
            name, "Virtual-4" if name.startswith("shared") else "Virtual-2"
        )

    # Domains

    def new_domid(self, chance: random.Random) -> int:
        """Return an unused domid: the next one, or one that was used before."""
        if self._ended and chance.random() < 0.3:
            return self._ended.pop(chance.randrange(len(self._ended)))
        self._next_domid += 1
        return self._next_domid

    async def create_domain(self, domid: int, name: str) -> Domain:
        """Create a domain without devices."""
        self.tools.create_domain(domid)
        with trio.CancelScope(shield=True):
            domain = await self.xen.start_domain(domid)
        self._keep_ports(domid)
        if name:
            self.tools.write(f"/local/domain/{domid}/name", name, [("n", 0), ("r", domid)])
        if domid != GOOD:
            self.guests[domid] = name
        return domain

    async def destroy(self, domid: int) -> None:
        """Destroy a domain as `xl destroy` does. Raises WrongBehaviour when a device does not end in time, though nothing hinders it."""
        self.guests.pop(domid, None)
        if domid in self.xen.domains:
            self.xen.stop_domain(domid)
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            for kind in KINDS:
                node = self.xen.server.tree.find(f"/local/domain/0/backend/{kind}/{domid}")
                for number in list(node.children) if node is not None else []:
                    nursery.start_soon(self._end_device, f"/local/domain/0/backend/{kind}/{domid}/{number}", begun)
        for kind in KINDS:
            self.tools.remove(f"/local/domain/0/backend/{kind}/{domid}")
        self.tools.destroy_domain(domid)
        self.touched -= {str(domid)}
        self.meddled.discard(domid)
        self._ended.append(domid)

    async def _end_device(self, back: str, begun: float) -> None:
        """Wait for the end of a device, and remove its nodes (libxl_device.c)."""
        state = self.tools.read(f"{back}/state")
        if state is None:
            return
        self.tools.write(f"{back}/online", "0")
        if state != b"6":
            self.tools.write(f"{back}/state", "5")
        try:
            await self.tools.wait_state(back, State.CLOSED, timeout=END)
        except trio.TooSlowError:
            hindered = (
                self.faults.active or self.faults.ended_at > begun - 1 or int(back.split("/")[-2]) in self.meddled
            )
            if not hindered:
                raise WrongBehaviour(f"the backend has not reached state 6 within {END:.0f} s: {back}") from None
