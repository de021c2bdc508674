"""The XenStore nodes of one PV device, and the rules of which ones are trusted.

The identity of a device is its place in our own directory, `backend/KIND/DOMID/NUMBER`, which only the toolstack and we write. The
frontend's directory belongs to the guest: a node there that names an output or a device is trusted only if the toolstack owns it.
"""

from __future__ import annotations

from typing import Any

import structlog

from displbe.xen.port import NoEntry, Store, StoreError

from .guests import guest_name, own_domid

__all__ = ["DeviceNodes", "DeviceRefused"]


class DeviceRefused(Exception):
    """The device cannot be connected with its present nodes in XenStore. The text goes to its `error` node."""


class DeviceNodes:
    """The two directories of a device: `path` is ours, `frontend` is the guest's."""

    def __init__(self, store: Store, backend_kind: str, frontend_kind: str, domid: int, number: int) -> None:
        """`backend_kind` and `frontend_kind` are the names below `backend/` and `device/`; they differ for vkbd."""
        self.store = store
        self.kind = frontend_kind
        self.domid = domid
        self.number = number
        self.name = ""
        """The guest's name in xl; empty when it is not known."""
        self.path = f"backend/{backend_kind}/{domid}/{number}"
        # Not from our `frontend` node, and never from the guest's `backend` node, which the guest may write.
        self.frontend = f"/local/domain/{domid}/device/{frontend_kind}/{number}"
        self._log: Any = structlog.get_logger("displbe.device").bind(domid=domid, device=f"{frontend_kind}/{number}")

    @property
    def log(self) -> Any:
        """A logger whose lines have the domain, the device, and the guest's name if it is known."""
        return self._log.bind(guest=self.name) if self.name else self._log

    async def identify(self) -> None:
        """Read the guest's name. Raises StoreLost."""
        self.name = await guest_name(self.store, self.domid)

    async def verify(self) -> None:
        """Check that `frontend` and `frontend-id` in our directory name the same guest as the directory's path. Raises DeviceRefused."""
        for key, value in (("frontend-id", b"%d" % self.domid), ("frontend", self.frontend.encode())):
            if (found := await self.read(f"{self.path}/{key}")) != value:
                raise DeviceRefused(f"{key} is {found!r}, not {value!r}")
        # displbe does not use this node, which the guest may write. But the operator should see a forged one.
        found = await self.read(f"{self.frontend}/backend")
        if found is not None and not found.endswith(f"/{self.path}".encode()):
            raise DeviceRefused(f"the guest's backend node is {found[:128]!r} and does not name {self.path}")

    async def read(self, path: str) -> bytes | None:
        """Return a node's value. Return None when it is missing or we may not read it (we may not read a frontend's node for a moment after
        it is created).
        """
        try:
            return await self.store.read(path)
        except StoreError:
            return None

    async def read_trusted(self, path: str, key: str) -> tuple[bytes, list[tuple[str, int]]] | None:
        """Return the value and the permissions of a node that Dom0 or our own domain owns; None when it is missing.

        Raises DeviceRefused when the node has another owner or cannot be read. `key` names the node in the text.
        """
        try:
            # The value is read first. Between the two requests the guest can replace a node of its directory, but the new node is its own.
            value = await self.store.read(path)
            permissions = await self.store.permissions(path)
        except NoEntry:
            return None
        except StoreError as error:
            raise DeviceRefused(f"cannot read {key}: {error}") from error
        owner = permissions[0][1]
        if owner not in (0, await own_domid(self.store)):
            raise DeviceRefused(f"{key} was written by {'the guest' if owner == self.domid else f'domain {owner}'}")
        return value, permissions
