"""Who a guest is: its name as the toolstack wrote it, and what the configuration says of that name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from displbe.wire.xs import parse_number
from displbe.xen.port import Store, StoreError

__all__ = ["GuestSettings", "allows_pictures", "guest_name", "own_domid"]


class GuestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[guest.NAME]` of the configuration."""

    connectors: list[str] = []
    """The outputs of its connectors, in their order, whatever XenStore says; empty: what XenStore says."""
    be_alloc: bool = False
    """Whether this guest may ask for buffers of ours (`be-alloc=1` in its xl configuration)."""
    input: str = ""
    """The devices of its keyboard, pointer and touch screen (`K:…;P:…;T:…`), whatever XenStore says; empty: what XenStore says."""
    screenshot: bool = True
    """Whether an operator may have a picture of what it shows (`displbectl screenshot`)."""


def allows_pictures(guests: Mapping[str, GuestSettings], name: str) -> bool:
    """Whether an operator may have a picture of a guest. One whose name is not known may be any of those that allow none."""
    if not name:
        return all(guest.screenshot for guest in guests.values())
    return guests.get(name, GuestSettings()).screenshot


async def own_domid(store: Store) -> int:
    """Our own domain's id; Dom0 where the store does not say."""
    try:
        return parse_number(await store.read("domid"), 0x7FEF) or 0
    except StoreError:
        return 0


async def guest_name(store: Store, domid: int) -> str:
    """The guest's name, or an empty string where this domain may not read it, or the guest itself could have written it.

    libxl lets Dom0 and the guest alone read the node: a driver domain cannot before Dom0 grants it (xenstore-chmod).
    """
    path = f"/local/domain/{domid}/name"
    try:
        name = (await store.read(path)).decode("utf-8", "replace")
        trusted = (await store.permissions(path))[0][1] in (0, await own_domid(store))
        return name if trusted else ""
    except StoreError:
        return ""
