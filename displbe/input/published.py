"""Reads what the frontend of a vkbd device and the toolstack have published in XenStore."""

from __future__ import annotations

from typing import Final

import msgspec

from displbe.backend.nodes import DeviceNodes, DeviceRefused
from displbe.wire.kbdif import RAW_MAX
from displbe.wire.xenbus import State, parse_state
from displbe.wire.xs import parse_number

from .features import DEFAULT_HEIGHT, DEFAULT_WIDTH, Features

__all__ = [
    "PAGE_KEYS",
    "Published",
    "has_not_begun",
    "read_display_size",
    "read_features",
    "read_published",
    "read_trusted_node",
]

PAGE_KEYS: Final = ("page-gref", "event-channel")
"""The nodes that name the frontend's page and channel, in the order of `Published`."""
MAX_CONTACTS: Final = 256
"""`contact_id` is a u8."""
MAX_SIZE: Final = 0x7FFFFFFF
"""Positions are s32."""


class Published(msgspec.Struct, frozen=True):
    """The grant reference of the page and the guest's event-channel port, as the frontend has published them."""

    page_gref: int
    event_channel: int


async def has_not_begun(nodes: DeviceNodes) -> bool:
    """Return whether the frontend has not read our nodes yet."""
    return parse_state(await nodes.read(f"{nodes.frontend}/state")) is State.INITIALISING


async def read_trusted_node(nodes: DeviceNodes, key: str) -> bytes | None:
    """Return a node of our own directory; None when it is missing. Raises DeviceRefused when the guest may write it."""
    found = await nodes.read_trusted(f"{nodes.path}/{key}", key)
    if found is None:
        return None
    value, permissions = found
    if permissions[0][0] in "wb" or any(domid == nodes.domid and letter in "wb" for letter, domid in permissions[1:]):
        raise DeviceRefused(f"{key} may be written by the guest")
    return value


async def _number(nodes: DeviceNodes, key: str, default: int, most: int) -> int:
    """Return a number from our own directory, at most `most`. A value that is no number means the default, as in Linux's frontend."""
    number = parse_number(await read_trusted_node(nodes, key) or b"")
    return default if number is None else min(number, most)


async def read_features(nodes: DeviceNodes) -> Features:
    """Return the features of the devices that the frontend has created: those that we offer and that it requests. Raises DeviceRefused."""

    async def asked(key: str) -> bool:
        return await nodes.read(f"{nodes.frontend}/{key}") == b"1"

    async def flag(key: str) -> bool:
        return (await read_trusted_node(nodes, key) or b"0") != b"0"

    absolute = await flag("feature-abs-pointer") and await asked("request-abs-pointer")
    raw = absolute and await flag("feature-raw-pointer") and await asked("request-raw-pointer")
    width = await _number(nodes, "width", DEFAULT_WIDTH, MAX_SIZE)
    height = await _number(nodes, "height", DEFAULT_HEIGHT, MAX_SIZE)
    touch = await flag("feature-multi-touch") and await asked("request-multi-touch")
    return Features(
        keyboard=not await flag("feature-disable-keyboard"),
        pointer=not await flag("feature-disable-pointer"),
        absolute=absolute,
        width=RAW_MAX + 1 if raw else max(1, width),
        height=RAW_MAX + 1 if raw else max(1, height),
        contacts=await _number(nodes, "multi-touch-num-contacts", 1, MAX_CONTACTS) if touch else 0,
        touch_width=max(1, await _number(nodes, "multi-touch-width", DEFAULT_WIDTH, MAX_SIZE)),
        touch_height=max(1, await _number(nodes, "multi-touch-height", DEFAULT_HEIGHT, MAX_SIZE)),
    )


async def read_published(nodes: DeviceNodes) -> Published:
    """Return the grant reference of the frontend's page and its event-channel port. Raises DeviceRefused, StoreLost."""
    numbers = []
    for key in PAGE_KEYS:
        value = await nodes.read(f"{nodes.frontend}/{key}")
        number = parse_number(value or b"")
        if number is None:
            raise DeviceRefused(f"{key} is no number (decimal, no leading zeros, below 2^32): {(value or b'')[:64]!r}")
        numbers.append(number)
    return Published(*numbers)


async def read_display_size(nodes: DeviceNodes) -> tuple[int, int] | None:
    """Return the size of the guest's first screen in pixels; None when it has none, or the node is no valid size."""
    value = await nodes.read(f"/local/domain/{nodes.domid}/device/vdispl/0/0/resolution")
    sides = [parse_number(side, 16384) for side in (value or b"").split(b"x")]
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None
