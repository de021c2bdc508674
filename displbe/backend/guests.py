"""Who a guest is: its name as the toolstack wrote it, and what the configuration says of that name."""

from __future__ import annotations

import msgspec

from displbe.xen.port import Store, StoreError

__all__ = ["GuestSettings", "guest_name"]


class GuestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[guest.NAME]` of the configuration."""

    connectors: list[str] = []
    """The outputs of its connectors, in their order, whatever XenStore says; empty: what XenStore says."""
    be_alloc: bool = False
    """Whether this guest may ask for buffers of ours (`be-alloc=1` in its xl configuration)."""


async def guest_name(store: Store, domid: int) -> str:
    """The guest's name, or an empty string where this domain may not read it, or the guest itself could have written it."""
    path = f"/local/domain/{domid}/name"
    try:
        if (await store.permissions(path))[0][1] == domid:
            return ""
        return (await store.read(path)).decode("utf-8", "replace")
    except StoreError:
        return ""
