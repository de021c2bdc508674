"""A card's place in the machine, which stays when the cards get other numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .names import canonical

__all__ = ["bus_path", "nodes_at", "sysfs_path_of"]

_BUSES: Final = {"pci", "platform"}


def sysfs_path_of(node: os.stat_result) -> str:
    """Return the sysfs path of the device behind a device node. The path says where in the machine the device is."""
    return os.path.realpath(f"/sys/dev/char/{os.major(node.st_rdev)}:{os.minor(node.st_rdev)}/device")


def bus_path(node: Path, sysfs_path: str) -> str:
    """Return a card's place as udev names it, for example `pci-0000:00:02.0`; empty: unknown.

    udev's links in /dev/dri/by-path say it. Without udev, it is made from the path in sysfs, for cards on PCI and on
    the platform bus.
    """
    there = os.path.realpath(node)
    for link in sorted((node.parent / "by-path").glob("*-card")):
        if os.path.realpath(link) == there:
            return link.name.removesuffix("-card")
    return _from_sysfs(Path(sysfs_path))


def nodes_at(nodes: Iterable[Path], place: str) -> list[Path]:
    """Return those device nodes whose cards are at a place: `pci-0000:00:02.0`, or the path of udev's link to the card."""
    wanted = canonical(Path(place).name.removesuffix("-card"))
    found = []
    for node in nodes:
        try:
            sysfs_path = sysfs_path_of(os.stat(node))
        except OSError:  # it has just gone
            continue
        if canonical(bus_path(node, sysfs_path)) == wanted:
            found.append(node)
    return found


def _from_sysfs(device: Path) -> str:
    """Return the place as the `path_id` builtin of udev makes it: each bus from the root on, of PCI only the last device."""
    parts: list[str] = []
    below = ""
    while device != device.parent:
        bus = os.path.basename(os.path.realpath(device / "subsystem"))
        if bus in _BUSES and not bus == below == "pci":
            parts.insert(0, f"{bus}-{device.name}")
        below = bus
        device = device.parent
    return "-".join(parts)
