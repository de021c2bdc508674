"""A guest's identity: its name as the toolstack wrote it, and the configuration table for that name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from displbe.wire.xs import parse_number
from displbe.xen.port import Store, StoreError

__all__ = ["GuestSettings", "Guests", "guest_name", "is_output_name", "own_domid"]

MAX_NAME: Final = 64
"""Maximum characters of an output's name."""


def is_output_name(text: str) -> bool:
    """Return whether a text can be the name of an output."""
    return 0 < len(text) <= MAX_NAME and text.isprintable()


class GuestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[guest.NAME]` of the configuration."""

    connectors: list[str] = []
    """The outputs of its connectors, in the order of the connectors. They replace those in XenStore. Empty: those in XenStore are used."""
    be_alloc: bool = False
    """Whether the backend may allocate this guest's buffers (`be-alloc=1` in its xl configuration)."""
    input: str = ""
    """The devices of its keyboard, pointer and touch screen (`K:…;P:…;T:…`). They replace those in XenStore. Empty: those in XenStore are
    used."""
    screenshot: bool = True
    """Whether an operator may take pictures of its screens (`displbectl screenshot`)."""

    def __post_init__(self) -> None:
        for name in self.connectors:
            if not is_output_name(name):
                raise ValueError(f"connectors must be names of outputs, of 1 to {MAX_NAME} printable characters")
        if len(set(self.connectors)) < len(self.connectors):
            raise ValueError("connectors names an output twice; an output shows one connector")


class Guests:
    """The `[guest.NAME]` tables of the configuration. One object is shared by all its users; a reload replaces its tables."""

    def __init__(self, tables: Mapping[str, GuestSettings] | None = None) -> None:
        self._tables = dict(tables or {})

    def __bool__(self) -> bool:
        return bool(self._tables)

    def replace(self, tables: Mapping[str, GuestSettings]) -> None:
        """Use these tables from now on."""
        self._tables = dict(tables)

    def settings(self, name: str) -> GuestSettings:
        """Return a guest's table, or the defaults if it has none."""
        return self._tables.get(name, GuestSettings())

    def allows_pictures(self, name: str) -> bool:
        """Return whether an operator may take pictures of a guest's screens. If its name is not known, it may be any guest of the
        configuration: pictures are then allowed only if no table forbids them.
        """
        if not name:
            return all(guest.screenshot for guest in self._tables.values())
        return self.settings(name).screenshot


async def own_domid(store: Store) -> int:
    """Return our own domain's id; 0 when XenStore has none. Raises StoreLost."""
    try:
        return parse_number(await store.read("domid"), 0x7FEF) or 0
    except StoreError:
        return 0


async def guest_name(store: Store, domid: int) -> str:
    """Return the guest's name; empty when this domain may not read it, or when the guest itself could have written it.

    libxl lets only Dom0 and the guest read the node. A driver domain can read it once Dom0 has allowed it (xenstore-chmod).
    Raises StoreLost.
    """
    path = f"/local/domain/{domid}/name"
    try:
        name = (await store.read(path)).decode("utf-8", "replace")
        trusted = (await store.permissions(path))[0][1] in (0, await own_domid(store))
        return name if trusted else ""
    except StoreError:
        return ""
