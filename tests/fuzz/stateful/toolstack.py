"""A toolstack that changes running guests: devices come and go, nodes are overwritten, names change."""

from __future__ import annotations

from typing import Final

import trio

from displbe.sim.toolstack import ConnectorSpec

from .actor import Actor

__all__ = ["CarelessToolstack"]

ODD: Final = ("07", "a", "-1", "4294967296", "2/01", "99999", "9000/", "32752/0", "2/1/1/1", "é", "0/0")
"""Directories under `backend/KIND` that are no devices."""
VALUES: Final = ("", "0", "1", "2", "3", "4", "5", "6", "9", "x", "01", "64x48", "1x1", "shared-0", "shared-1", "\xff")


class CarelessToolstack(Actor):
    """An actor that writes to XenStore as Dom0."""

    async def run(self) -> None:
        """Act until cancelled."""
        while True:
            await trio.sleep(self._chance.choice((0.05, 0.3, 1, 2)))
            act = self._chance.choice(
                (self._odd_directory, self._node, self._node, self._device, self._rename, self._offline)
            )
            domids = list(self._world.guests)
            if domids:
                await act(self._chance.choice(domids))

    def _touch(self, domid: int) -> None:
        self._world.touched |= {str(domid), self._world.guests.get(domid, "")}
        self._world.meddled.add(domid)

    def _write(self, path: str, value: str) -> None:
        self._note(f"writes {path} = {value!r}")
        self._world.tools.write(path, value)

    async def _odd_directory(self, domid: int) -> None:
        kind, odd = self._chance.choice(("vdispl", "vinput")), self._chance.choice(ODD)
        path = f"/local/domain/0/backend/{kind}/{odd}"
        if odd.isascii():
            try:
                self._write(f"{path}/{self._chance.choice(('state', '0/state', 'x'))}", self._chance.choice(VALUES))
                await trio.sleep(self._chance.choice((0, 0.1, 1)))
            finally:
                self._world.tools.remove(f"/local/domain/0/backend/{kind}/{odd.split('/')[0]}")

    async def _node(self, domid: int) -> None:
        """Overwrite a node of a device, on either side."""
        self._touch(domid)
        chance, tools = self._chance, self._world.tools
        number = chance.randrange(2)
        home = chance.choice((tools.back(domid, number), tools.front(domid, number), tools.vinput(domid, number)))
        node = chance.choice(
            ("state", "online", "frontend", "frontend-id", "unique-id", "0/unique-id", "0/resolution", "be-alloc")
        )
        if tools.read(home) is not None:
            self._write(f"{home}/{node}", chance.choice(VALUES))
        await trio.lowlevel.checkpoint()

    async def _device(self, domid: int) -> None:
        """Remove a device with all its nodes, at once or as libxl does, or add one."""
        self._touch(domid)
        chance, tools = self._chance, self._world.tools
        number = chance.randrange(3)
        self._note(f"changes device {number} of domain {domid}")
        match chance.randrange(3):
            case 0:
                tools.remove(tools.back(domid, number))
                tools.remove(tools.front(domid, number))
            case 1:
                try:
                    await tools.remove_display(domid, number)
                except trio.TooSlowError:
                    tools.remove(tools.back(domid, number))
            case _:
                specs = [
                    ConnectorSpec(self._world.screen(f"shared-{chance.randrange(4)}"), 64, 48)
                    for _ in range(chance.choice((0, 1, 2)))
                ]
                tools.add_display(domid, specs, number)
        await trio.lowlevel.checkpoint()

    async def _rename(self, domid: int) -> None:
        self._touch(domid)
        name = self._chance.choice(("alpha", "beta", "", "3", "{x}", "é"))
        self._write(f"/local/domain/{domid}/name", name)
        self._world.touched.add(name)
        await trio.lowlevel.checkpoint()

    async def _offline(self, domid: int) -> None:
        self._touch(domid)
        self._write(f"{self._world.tools.back(domid, 0)}/online", self._chance.choice(("0", "0", "1", "x")))
        await trio.lowlevel.checkpoint()
