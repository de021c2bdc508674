"""Reads what the frontend of a vdispl device and the toolstack have published in XenStore: the connectors and their rings."""

from __future__ import annotations

from typing import Final

import msgspec

from displbe.backend.guests import GuestSettings, is_output_name
from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.wire.xs import parse_number
from displbe.xen.port import NoEntry, StoreError

__all__ = [
    "RING_KEYS",
    "PublishedConnector",
    "Rings",
    "read_be_alloc",
    "read_connectors",
    "read_device_connectors",
    "read_rings",
]

RING_KEYS: Final = ("req-ring-ref", "req-event-channel", "evt-ring-ref", "evt-event-channel")
"""The nodes that name a connector's rings, in the order of `Rings`."""
MAX_CONNECTORS: Final = 8
MAX_SHOWN: Final = 64
"""Bytes of a wrong value that are shown."""
MAX_SIDE: Final = 16384
"""Maximum width and height in pixels."""


class Rings(msgspec.Struct, frozen=True):
    """A connector's rings: the grant references of their pages, and the guest's event-channel ports."""

    req_ref: int
    req_port: int
    evt_ref: int
    evt_port: int


class PublishedConnector(msgspec.Struct, frozen=True):
    """One connector: its output, its resolution in pixels, its rings."""

    name: str
    width: int
    height: int
    rings: Rings


async def read_connectors(nodes: DeviceNodes, guest: GuestSettings) -> list[PublishedConnector]:
    """Return the device's connectors, from number 0 upwards. Raises DeviceRefused for a missing or wrong node."""
    found: list[PublishedConnector] = []
    while True:
        index = len(found)
        try:
            await nodes.store.read(f"{nodes.frontend}/{index}/req-ring-ref")
        except NoEntry:
            break
        except StoreError as error:
            raise DeviceRefused(f"cannot read connector {index}: {error}") from error
        if index == MAX_CONNECTORS:
            raise DeviceRefused(f"the frontend has published more than {MAX_CONNECTORS} connectors")
        found.append(await _read_connector(nodes, guest, index))
    if not found:
        raise DeviceRefused("the frontend has published no connector")
    refs = [ref for one in found for ref in (one.rings.req_ref, one.rings.evt_ref)]
    ports = [port for one in found for port in (one.rings.req_port, one.rings.evt_port)]
    if len(set(refs)) < len(refs) or len(set(ports)) < len(ports):
        raise DeviceRefused("the frontend has published one page or one event channel twice")
    return found


async def read_device_connectors(nodes: DeviceNodes, guest: GuestSettings) -> list[tuple[str, int, int]]:
    """Return the name, width and height of each connector that the toolstack has given the device, up to the first one that is missing or
    wrong. The frontend need not have published its rings. Raises StoreLost.
    """
    found: list[tuple[str, int, int]] = []
    try:
        while len(found) < MAX_CONNECTORS:
            found.append((await _name(nodes, guest, len(found)), *await _resolution(nodes, len(found))))
    except DeviceRefused:
        pass  # also behind the last connector; `read_connectors` reports a node that is wrong
    return found


async def read_rings(nodes: DeviceNodes, index: int) -> Rings:
    """Return a connector's rings. Raises DeviceRefused, StoreLost."""
    return Rings(*[await _number(nodes, f"{index}/{key}") for key in RING_KEYS])


async def read_be_alloc(nodes: DeviceNodes) -> bool:
    """Return whether the toolstack has set `be-alloc`: the backend allocates the buffers. Raises DeviceRefused."""
    return await _trusted(nodes, "be-alloc", missing=b"0") == b"1"


async def _read_connector(nodes: DeviceNodes, guest: GuestSettings, index: int) -> PublishedConnector:
    name = await _name(nodes, guest, index)
    return PublishedConnector(name, *await _resolution(nodes, index), await read_rings(nodes, index))


async def _resolution(nodes: DeviceNodes, index: int) -> tuple[int, int]:
    """Return a connector's width and height in pixels. Raises DeviceRefused."""
    resolution = await _trusted(nodes, f"{index}/resolution")
    sides = [parse_number(side, MAX_SIDE) for side in resolution.split(b"x")]
    if len(sides) != 2 or not sides[0] or not sides[1]:
        raise DeviceRefused(f"{index}/resolution is not WIDTHxHEIGHT: {resolution[:MAX_SHOWN]!r}")
    return sides[0], sides[1]


async def _name(nodes: DeviceNodes, guest: GuestSettings, index: int) -> str:
    """Return the name of a connector's output: from the configuration if it lists this guest's connectors, else from the toolstack.

    Raises DeviceRefused.
    """
    if guest.connectors:
        if index >= len(guest.connectors):
            raise DeviceRefused(f"the configuration gives this guest {len(guest.connectors)} connectors, it has more")
        return guest.connectors[index]
    name = await _trusted(nodes, f"{index}/unique-id")
    text = name.decode("utf-8", "replace")
    if not is_output_name(text):
        raise DeviceRefused(f"{index}/unique-id is no name: {name[:MAX_SHOWN]!r}")
    return text


async def _number(nodes: DeviceNodes, key: str) -> int:
    try:
        value = await nodes.store.read(f"{nodes.frontend}/{key}")
    except StoreError as error:
        raise DeviceRefused(f"cannot read {key}: {error}") from error
    number = parse_number(value)
    if number is None:
        raise DeviceRefused(f"{key} is no number (decimal, no leading zeros, below 2^32): {value[:MAX_SHOWN]!r}")
    return number


async def _trusted(nodes: DeviceNodes, key: str, missing: bytes | None = None) -> bytes:
    """Return a node of the frontend's directory that the toolstack wrote. Raises DeviceRefused."""
    found = await nodes.read_trusted(f"{nodes.frontend}/{key}", key)
    if found is not None:
        return found[0]
    if missing is not None:
        return missing
    raise DeviceRefused(f"{key} is missing")
