"""The XenStore nodes of one PV device, and which of them are trusted.

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
    """The device cannot be connected as it stands in XenStore. The text goes to its `error` node."""


class DeviceNodes:
    """The two directories of a device: `path` is ours, `frontend` is the guest's."""

    def __init__(self, store: Store, backend_kind: str, frontend_kind: str, domid: int, number: int) -> None:
        """`backend_kind` and `frontend_kind` are the names below `backend/` and `device/`; they differ for vkbd."""
        self.store = store
        self.kind = frontend_kind
        self.domid = domid
        self.number = number
        self.name = ""
        """The guest's name in xl; empty: it is not known."""
        self.path = f"backend/{backend_kind}/{domid}/{number}"
        # Not from our `frontend` node, and never from the guest's `backend` node, which the guest may write.
        self.frontend = f"/local/domain/{domid}/device/{frontend_kind}/{number}"
        self._log: Any = structlog.get_logger("displbe.device").bind(domid=domid, device=f"{frontend_kind}/{number}")

    @property
    def log(self) -> Any:
        """A logger whose lines name the guest, by its name where that is known, and the device."""
        return self._log.bind(guest=self.name) if self.name else self._log

    async def identify(self) -> None:
        """Read the guest's name. Raises StoreLost."""
        self.name = await guest_name(self.store, self.domid)

    async def verify(self) -> None:
        """Check that our own directory names the guest that its place names. Raises DeviceRefused."""
        for key, value in (("frontend-id", b"%d" % self.domid), ("frontend", self.frontend.encode())):
            if (found := await self.read(f"{self.path}/{key}")) != value:
                raise DeviceRefused(f"{key} is {found!r} where {value!r} belongs")
        # We do not use this node, which the guest may write. But a forged one is an attempt that the operator should see.
        found = await self.read(f"{self.frontend}/backend")
        if found is not None and not found.endswith(f"/{self.path}".encode()):
            raise DeviceRefused(f"the guest's backend node is {found[:128]!r} where {self.path} belongs")

    async def read(self, path: str) -> bytes | None:
        """Return a node; None when it is missing or may not be read (the frontend's may not for a moment after it was made)."""
        try:
            return await self.store.read(path)
        except StoreError:
            return None

    async def read_trusted(self, path: str, key: str) -> tuple[bytes, list[tuple[str, int]]] | None:
        """Return a node that the toolstack or our own domain wrote, and its permissions; None when it is missing.

        Raises DeviceRefused when the node has another owner. `key` names the node in the text.
        """
        try:
            # The value first: between the two requests the guest can replace a node of its directory, but never by one of our owner's.
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
