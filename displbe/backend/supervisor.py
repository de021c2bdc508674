"""Finds PV devices and keeps one task for each.

One watch on our `backend/KIND` covers every device of that kind: new ones, gone ones, and each one's own state. (A driver domain
has 128 watches in all.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from displbe.wire.xs import parse_number
from displbe.xen.port import Store, StoreError, StoreLost

from .device import Device, Driver
from .quota import Quotas

__all__ = ["Supervisor"]

RESTART: Final = 1.0
"""Seconds before a device whose task failed is started anew."""
_log = structlog.get_logger("displbe.supervisor")


class Supervisor:
    """All devices of a driver's kind."""

    def __init__(
        self, store: Store, driver: Driver, quotas: Quotas, arrive: Callable[[Device], Awaitable[None]] | None = None
    ) -> None:
        """`arrive` is awaited for each new device, in the order of their numbers, before any of them is served."""
        self.devices: dict[tuple[int, int], Device] = {}
        self._store = store
        self._home = f"backend/{driver.backend_kind}"
        self._driver = driver
        self._quotas = quotas
        self._arrive = arrive
        self._dirty = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve for ever; `started` after the first look at the store."""
        async with trio.open_nursery() as nursery, self._store.watch(self._home, self._changed):
            self._nursery = nursery
            while True:
                self._dirty = trio.Event()
                new = [key for key in sorted(await self._find()) if key not in self.devices]
                devices = [Device(self._store, self._driver, *key, self._quotas.enter(key[0])) for key in new]
                for device in devices:
                    await self._welcome(device)
                for device in devices:
                    self.devices[device.domid, device.number] = device
                    nursery.start_soon(self._serve, device, (device.domid, device.number))
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

    async def _welcome(self, device: Device) -> None:
        try:
            if self._arrive is not None:
                await self._arrive(device)
        except Exception:  # it is that device's alone
            _log.exception("device not announced", domid=device.domid, device=device.path)

    async def _serve(self, device: Device, key: tuple[int, int]) -> None:
        """One device's task: whatever goes wrong in it stays in it."""
        _log.info("device found", domid=device.domid, device=device.path)
        try:
            while True:
                try:
                    await device.run(self._nursery)
                    break
                except Exception:
                    device.log.exception("device failed; it is started anew")
                    await trio.sleep(RESTART)
        finally:
            del self.devices[key]
            self._quotas.leave(device.domid)
        device.log.info("device gone")
        self._dirty.set()  # made again meanwhile?
