"""The toolstack's writes to XenStore, as libxl does them (libxl_vdispl.c, libxl_device.c), with the owners of the nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import trio

from displbe.wire.xenbus import State, parse_state

from .store import Perms, StoreServer

__all__ = ["ConnectorSpec", "Toolstack"]


class ConnectorSpec(msgspec.Struct, frozen=True):
    """One connector of `vdispl = ['connectors=NAME:WIDTHxHEIGHT']`."""

    name: str
    width: int
    height: int


class Toolstack:
    """A simulated xl, which works directly on the tree of a simulated XenStore."""

    def __init__(self, server: StoreServer) -> None:
        self._server = server

    def write(self, path: str, value: str | bytes, perms: Perms | None = None) -> None:
        """Write a node as Dom0."""
        self._server.tree.write(0, path, value.encode() if isinstance(value, str) else value)
        if perms is not None:
            self._server.tree.set_perms(0, path, perms)
        self._server.fire([path])

    def read(self, path: str) -> bytes | None:
        """Return a node's value, or None."""
        node = self._server.tree.find(path)
        return node.value if node is not None else None

    def remove(self, path: str) -> None:
        """Remove a node, if it exists."""
        if self._server.tree.find(path) is not None:
            self._server.tree.remove(0, path)
            self._server.fire([path])

    def create_domain(self, domid: int) -> None:
        """Create a domain's home directory. Dom0 owns it and its `device` directory; the domain owns `data` and `error`."""
        self.write(f"/local/domain/{domid}", "", [("n", 0), ("r", domid)])
        self.write(f"/local/domain/{domid}/domid", str(domid))
        self.write(f"/local/domain/{domid}/data", "", [("n", domid)])
        self.write(f"/local/domain/{domid}/error", "", [("n", domid)])
        self.write(f"/local/domain/{domid}/device", "", [("n", 0), ("r", domid)])

    def add_display(
        self,
        domid: int,
        connectors: Sequence[ConnectorSpec],
        number: int = 0,
        *,
        backend: int = 0,
        be_alloc: bool = False,
    ) -> None:
        """Create the nodes of a vdispl device, as `xl create` and `xl vdispl-attach` do."""
        front, back = self.front(domid, number), self.back(domid, number, backend)
        guests: Perms = [("n", domid), ("r", backend)]
        ours: Perms = [("n", backend), ("r", domid)]
        protected: Perms = [("n", backend), ("r", domid)]
        if self.read(f"/local/domain/{domid}/device/vdispl") is None:
            self.write(f"/local/domain/{domid}/device/vdispl", "", [("n", 0), ("r", domid)])
        self.write(front, "", guests)
        self.write(f"{front}/backend", back)
        self.write(f"{front}/backend-id", str(backend))
        self.write(f"{front}/be-alloc", str(int(be_alloc)), protected)
        for index, connector in enumerate(connectors):
            self.write(f"{front}/{index}/unique-id", connector.name, protected)
            self.write(f"{front}/{index}/resolution", f"{connector.width}x{connector.height}", protected)
        self.write(f"{front}/state", "1")
        self.write(back, "", ours)
        self.write(f"{back}/frontend", front)
        self.write(f"{back}/frontend-id", str(domid))
        self.write(f"{back}/online", "1")
        self.write(f"{back}/state", "1")

    def add_input(
        self, domid: int, nodes: Mapping[str, str], number: int = 0, *, backend: int = 0, kind: str = "vinput"
    ) -> None:
        """Create a vkb device with these nodes in the backend's directory (libxl_vkb.c). `kind` "vkbd": QEMU is its backend."""
        front, back = self.keyboard(domid, number), f"/local/domain/{backend}/backend/{kind}/{domid}/{number}"
        guests: Perms = [("n", domid), ("r", backend)]
        ours: Perms = [("n", backend), ("r", domid)]
        if self.read(f"/local/domain/{domid}/device/vkbd") is None:
            self.write(f"/local/domain/{domid}/device/vkbd", "", [("n", 0), ("r", domid)])
        self.write(front, "", guests)
        self.write(f"{front}/backend", back)
        self.write(f"{front}/backend-id", str(backend))
        self.write(f"{front}/state", "1")
        tree = {"": "", "frontend": front, "frontend-id": str(domid), "online": "1", "state": "1", **nodes}
        for key, value in tree.items():  # without events in between, because libxl writes all nodes in one transaction
            self._server.tree.write(0, f"{back}/{key}".rstrip("/"), value.encode())
            self._server.tree.set_perms(0, f"{back}/{key}".rstrip("/"), ours)
        self._server.fire([f"{back}/{key}".rstrip("/") for key in tree])

    async def remove_input(self, domid: int, number: int = 0, *, backend: int = 0) -> None:
        """Remove a vkb device."""
        await self._remove(self.keyboard(domid, number), self.vinput(domid, number, backend), backend)

    def keyboard(self, domid: int, number: int = 0) -> str:
        """Return the directory of a vkbd frontend."""
        return f"/local/domain/{domid}/device/vkbd/{number}"

    def vinput(self, domid: int, number: int = 0, backend: int = 0) -> str:
        """Return the directory of a vkbd backend."""
        return f"/local/domain/{backend}/backend/vinput/{domid}/{number}"

    def front(self, domid: int, number: int = 0) -> str:
        """Return the directory of a vdispl frontend."""
        return f"/local/domain/{domid}/device/vdispl/{number}"

    def back(self, domid: int, number: int = 0, backend: int = 0) -> str:
        """Return the directory of a vdispl backend."""
        return f"/local/domain/{backend}/backend/vdispl/{domid}/{number}"

    async def wait_state(self, path: str, *states: State | None, timeout: float = 30.0) -> State | None:
        """Wait until the state in the directory `path` is one of `states` (None: missing), and return it.

        Raises trio.TooSlowError after `timeout` seconds.
        """
        with trio.fail_after(timeout):
            while (state := parse_state(self.read(f"{path}/state"))) not in states:
                await trio.sleep(0.005)
        return state

    async def remove_display(self, domid: int, number: int = 0, *, backend: int = 0) -> None:
        """Remove a vdispl device, as `xl vdispl-detach` and `xl destroy` do: wait up to 10 s for the backend's 6, then remove the nodes.

        A driver domain has another 10 s to remove its own nodes. Raises trio.TooSlowError.
        """
        await self._remove(self.front(domid, number), self.back(domid, number, backend), backend)

    async def _remove(self, front: str, back: str, backend: int) -> None:
        if self.read(f"{back}/state") is not None:
            self.write(f"{back}/online", "0")
            if self.read(f"{back}/state") != b"6":
                self.write(f"{back}/state", "5")
            await self.wait_state(back, State.CLOSED, timeout=10)
            if backend:
                await self.wait_state(back, None, timeout=10)
        self.remove(front)
        if not backend:
            self.remove(back)

    def destroy_domain(self, domid: int) -> None:
        """Remove the home directory of a dead domain."""
        self.remove(f"/local/domain/{domid}")
