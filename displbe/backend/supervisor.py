"""Finds PV devices and keeps one task for each.

One watch on our `backend/KIND` covers every device of that kind: new ones, gone ones, and each one's own state. (A driver domain
has 128 watches in all.)
"""

from __future__ import annotations

from typing import Any, Final

import structlog
import trio

from displbe.wire.xs import parse_number
from displbe.xen.port import Store, StoreError, StoreLost

from .device import Device, Driver
from .quota import Limits, Quota, Total

__all__ = ["Supervisor"]

RESTART: Final = 1.0
"""Seconds before a device whose task failed is started anew."""
_log = structlog.get_logger("displbe.supervisor")


class Supervisor:
    """All devices of one kind (`vdispl`)."""

    def __init__(self, store: Store, kind: str, driver: Driver, limits: Limits, total: Total) -> None:
        self.devices: dict[tuple[int, int], Device] = {}
        self._store = store
        self._home = f"backend/{kind}"
        self._kind = kind
        self._driver = driver
        self._limits = limits
        self._total = total
        self._quotas: dict[int, Quota] = {}
        self._dirty = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve for ever; `started` after the first look at the store."""
        async with trio.open_nursery() as nursery, self._store.watch(self._home, self._changed):
            while True:
                self._dirty = trio.Event()
                for domid, number in await self._find():
                    if (domid, number) not in self.devices:
                        self._start(nursery, domid, number)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await self._dirty.wait()

    def _changed(self, path: str) -> None:
        """A node below our home: a known device's own, else something new."""
        parts = path[len(self._home) + 1 :].split("/")
        numbers = [parse_number(part.encode()) for part in parts[:2]]
        if (
            len(numbers) == 2
            and None not in numbers
            and (device := self.devices.get((numbers[0] or 0, numbers[1] or 0)))
        ):
            device.mark_dirty()
        else:
            self._dirty.set()
            if len(numbers) < 2:
                for device in self.devices.values():
                    device.mark_dirty()

    async def _find(self) -> list[tuple[int, int]]:
        found = []
        for domid in await self._list(self._home):
            for number in await self._list(f"{self._home}/{domid}"):
                pair = parse_number(domid.encode(), 0x7FEF), parse_number(number.encode())
                # Without a state there is no device: a node that was written while the toolstack removed the directory.
                if pair[0] is not None and pair[1] is not None and await self._has_state(domid, number):
                    found.append((pair[0], pair[1]))
        return found

    async def _has_state(self, domid: str, number: str) -> bool:
        return "state" in await self._list(f"{self._home}/{domid}/{number}")

    async def _list(self, path: str) -> list[str]:
        while True:
            try:
                return await self._store.children(path)
            except StoreError:
                return []
            except StoreLost:
                await trio.lowlevel.checkpoint()

    def _start(self, nursery: trio.Nursery, domid: int, number: int) -> None:
        quota = self._quota(domid)
        device = self.devices[domid, number] = Device(self._store, self._kind, domid, number, self._driver, quota)
        nursery.start_soon(self._serve, device, (domid, number))

    def _quota(self, domid: int) -> Quota:
        """The guest's quota; when the guests' limits together no longer fit, the operator is told before it hurts."""
        if domid not in self._quotas:
            self._quotas[domid] = Quota(self._limits, self._total)
            promised = len(self._quotas) * self._limits.pages
            if promised > self._total.limit:
                _log.warning(
                    "guests may together ask for more pages than can be mapped",
                    guests=len(self._quotas),
                    pages_per_guest=self._limits.pages,
                    mappable=self._total.limit,
                )
        return self._quotas[domid]

    async def _serve(self, device: Device, key: tuple[int, int]) -> None:
        """One device's task: whatever goes wrong in it stays in it."""
        log: Any = _log.bind(domid=device.domid, device=device.path)
        log.info("device found")
        try:
            while True:
                try:
                    await device.run()
                    break
                except Exception:
                    log.exception("device failed; it is started anew")
                    await trio.sleep(RESTART)
        finally:
            del self.devices[key]
            if not any(domid == device.domid for domid, _ in self.devices):
                del self._quotas[device.domid]
        log.info("device gone")
        self._dirty.set()  # made again meanwhile?
