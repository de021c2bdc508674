"""Checks input devices: whether guests may use them, and whether displbe can open them."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from displbe.config import Settings
from displbe.input.bindings import Binding, parse_unique_id

from .check_result import CheckResult, failed, passed, warning
from .machine import Machine
from .xlconfig import XlConfig

__all__ = ["allowed_devices", "guests_devices"]


def allowed_devices(machine: Machine, settings: Settings) -> Iterator[CheckResult]:
    """Check each entry of `[input] devices`."""
    for entry in settings.input.devices:
        paths = _named(machine, entry)
        if not paths:
            yield warning(
                f"[input] devices: there is no {entry} at present",
                "list the devices: ls -l /dev/input/by-id /dev/input/by-path",
            )
        for path in paths:
            if machine.may(path, os.R_OK):
                yield passed(f"[input] devices: {entry} is {path.name}")
            else:
                yield machine.denied(f"{path.name} of [input] devices", "add displbe's user to the group input")


def guests_devices(
    machine: Machine, settings: Settings, path: Path, guest: XlConfig, outputs: list[str]
) -> Iterator[CheckResult]:
    """Check the devices that a guest's `[guest.NAME]` table names, or else its vkb lines."""
    own = settings.guest.get(guest.name)
    for keyboard in guest.keyboards:
        ours = own.input if own is not None else ""
        try:
            bindings = parse_unique_id(ours or keyboard.unique_id)
        except ValueError as error:
            yield failed(
                f"{path}: vkb: unique-id: {error}",
                "unique-id is K:ID;P:ID;T:ID; see [input] in configs/displbe.toml",
            )
            continue
        for binding in bindings:
            if binding.is_device:
                yield from _device(machine, settings, path, binding, granted=bool(ours))
            elif binding.id not in outputs:
                yield failed(
                    f"{path}: vkb: {binding.id} is neither a device nor one of the guest's connectors",
                    "name a device: /dev/input/eventN, by-id/NAME, by-path/NAME or name=NAME",
                )
            elif settings.sink not in ("wayland", "x11"):
                yield failed(
                    f"{path}: vkb: {binding.id}: screens of the {settings.sink} sink have no input of their own",
                    "name a device: /dev/input/eventN, by-id/NAME, by-path/NAME or name=NAME",
                )


def _device(
    machine: Machine, settings: Settings, path: Path, binding: Binding, *, granted: bool
) -> Iterator[CheckResult]:
    nodes = _named(machine, binding.id, pattern=False)
    allowed = {node for entry in settings.input.devices for node in _named(machine, entry)}
    if not granted and (not settings.input.devices or (nodes and not allowed.intersection(nodes))):
        yield failed(f"{path}: vkb: no guest may have {binding.id}", f'allow it: devices = ["{binding.id}"] in [input]')
    elif not nodes:
        yield warning(
            f"{path}: vkb: there is no {binding.id} at present",
            "list the devices: ls -l /dev/input/by-id /dev/input/by-path",
        )


def _named(machine: Machine, id: str, *, pattern: bool = True) -> list[Path]:
    """Return the nodes that an ID names, found as the daemon finds them (input.evdev.lookup). With `pattern`, the ID may be a pattern."""
    folder = machine.path("/dev/input")
    if id.startswith("name="):
        name = id.removeprefix("name=")
        nodes = ((node, machine.text(f"/sys/class/input/{node.name}/device/name")) for node in folder.glob("event*"))
        return sorted(node for node, its in nodes if (fnmatchcase(its, name) if pattern else its == name))
    wanted = id if pattern else glob.escape(id)
    place = str(machine.path(wanted)) if id.startswith("/") else f"{folder}/{wanted}"
    found = {Path(os.path.realpath(match)) for match in glob.glob(place)}
    return sorted(node for node in found if re.fullmatch(r"event\d+", node.name) and os.path.exists(node))
