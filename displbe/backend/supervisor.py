"""Finds the PV devices of one kind and keeps one task for each.

One watch on our `backend/KIND` covers every device of that kind: new ones, removed ones, and the state of each. (A driver domain may have
128 watches in all.)
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

import structlog
import trio

from displbe.shortage import brief, severity
from displbe.wire.xs import parse_number
from displbe.xen.port import Store, StoreError, StoreLost

from .device import Device
from .driver import Driver, Service
from .quota import Quotas

__all__ = ["Supervisor"]

RESTART: Final = 1.0
"""Seconds before the task of a device is restarted after a failure."""
_log = structlog.get_logger("displbe.supervisor")

S = TypeVar("S", bound=Service)


class Supervisor(Generic[S]):
    """All devices of a driver's kind, by domain and number."""

    def __init__(self, store: Store, driver: Driver[S], quotas: Quotas) -> None:
        self.devices: dict[tuple[int, int], Device[S]] = {}
        self._store = store
        self._home = f"backend/{driver.backend_kind}"
        self._driver = driver
        self._quotas = quotas
        self._dirty = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. `started` is called after the first look at the store.

        `arrive` is called for all new devices of one look, in the order of their numbers, before any of them is served.
        """
        async with trio.open_nursery() as nursery, self._store.watch(self._home, self._changed):
            while True:
                self._dirty = trio.Event()
                new = [key for key in sorted(await self._find()) if key not in self.devices]
                devices = [Device(self._store, self._driver, *key, self._quotas.enter(key[0])) for key in new]
                for device in devices:
                    await self._announce(device)
                for key, device in zip(new, devices, strict=True):
                    self.devices[key] = device
                    nursery.start_soon(self._serve, device, key, nursery)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await self._dirty.wait()

    def _changed(self, path: str) -> None:
        """Note a possible change of a node below `backend/KIND`. It belongs to a known device, or devices were added or removed."""
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
                # A directory without a state is not a device: a node was written while the toolstack removed the directory.
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

    async def _announce(self, device: Device[S]) -> None:
        try:
            await device.arrive()
        except Exception:  # other devices are not affected
            device.nodes.log.exception("preparing for the device failed; it is served nevertheless")

    async def _serve(self, device: Device[S], key: tuple[int, int], background: trio.Nursery) -> None:
        """Run one device's task, and restart it after an error."""
        _log.info("device found", domid=device.domid, device=device.nodes.path)
        try:
            while True:
                try:
                    await device.run(background)
                    break
                except Exception as error:
                    say = getattr(device.nodes.log, severity(error))
                    say("device failed; it is started anew", reason=brief(error))
                    await trio.sleep(RESTART)
        finally:
            device.depart()
            del self.devices[key]
            self._quotas.leave(device.domid)
        device.nodes.log.info("device gone")
        self._dirty.set()  # the toolstack may have created it again meanwhile
