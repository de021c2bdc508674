"""The host's device nodes, /dev/input/event0 and so on, and their attributes in sysfs. All calls may block."""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from struct import Struct, calcsize
from typing import Any, Final, Protocol

from displbe.input.bindings import Role
from displbe.input.event_codes import (
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_REL,
    EV_REP,
    EV_SYN,
    INPUT_PROP_POINTER,
    SYN_REPORT,
)

from .capabilities import SLOT_FIELDS, AbsAxis, Capabilities, InputEvent, Slot, Snapshot

__all__ = ["READ_EVENTS", "DeviceNode", "DeviceNodes", "SystemNode", "SystemNodes", "read_events"]

READ_EVENTS: Final = 256
"""Events that are read at once: more than the kernel buffers for a keyboard or a mouse (64)."""
LONG: Final = calcsize("@l")
"""Bytes of the kernel's long."""
_EVENT: Final = Struct(f"={2 * LONG}xHHi")
"""struct input_event (linux/input.h) without its time, which takes two longs."""
_NODE: Final = re.compile(r"/dev/input/event\d+")


class DeviceNode(Protocol):
    """An open device node."""

    fd: int
    name: str
    capabilities: Capabilities
    repeats: bool
    """EV_REP: the kernel repeats keys that are held down."""

    def read(self) -> Sequence[InputEvent]:
        """Return buffered events, at most READ_EVENTS. Raises BlockingIOError when there are none, OSError when the device has gone."""

    def snapshot(self) -> Snapshot:
        """Return the device's present state. The kernel discards buffered key events (EVIOCGKEY). Raises OSError."""

    def grab(self) -> None:
        """Take the device's events from all other readers (EVIOCGRAB). Raises OSError when another program has grabbed it."""

    def ungrab(self) -> None:
        """Give the device's events to all readers again. Raises OSError."""

    def set_lamps(self, lamps: dict[int, bool]) -> None:
        """Switch lamps on and off, by their codes (EV_LED). Raises OSError, EBADF when the node is open for reading only."""

    def close(self) -> None:
        """Close the node. This also ends the grab."""


class DeviceNodes(Protocol):
    """The device nodes of a machine."""

    def paths(self) -> list[str]:
        """Return the paths of all nodes: `/dev/input/event0` and so on."""

    def resolve(self, path: str) -> list[str]:
        """Return the nodes that a path, or a glob pattern of paths, leads to through symbolic links."""

    def name(self, path: str) -> str:
        """Return the name that a device reports (EVIOCGNAME); empty when it has gone."""

    def is_absolute(self, path: str) -> bool:
        """Return whether a device reports positions when it is used as a pointer. False when it has gone."""

    def fitness(self, path: str, role: Role) -> int:
        """Return how well a device suits a role (Capabilities.fitness); 0 when it does not suit it or has gone."""

    def open(self, path: str) -> DeviceNode:
        """Open a node. Raises OSError."""


class SystemNodes:
    """The device nodes of this machine, opened with python-evdev."""

    def paths(self) -> list[str]:
        return sorted(path for path in glob.glob("/dev/input/event*") if _NODE.fullmatch(path))

    def resolve(self, path: str) -> list[str]:
        found = {os.path.realpath(match) for match in glob.glob(path)}
        return sorted(match for match in found if _NODE.fullmatch(match))

    def name(self, path: str) -> str:
        return _attribute(path, "name")

    def is_absolute(self, path: str) -> bool:
        return sysfs_capabilities(path).is_absolute

    def fitness(self, path: str, role: Role) -> int:
        return sysfs_capabilities(path).fitness(role)

    def open(self, path: str) -> DeviceNode:
        return SystemNode(path)


def read_events(fd: int) -> list[InputEvent]:
    """Read whole events from an open node (DeviceNode.read)."""
    events: list[Any] = list(_EVENT.iter_unpack(os.read(fd, READ_EVENTS * _EVENT.size)))
    if not events:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return events


def _attribute(path: str, name: str) -> str:
    """Return a sysfs attribute of a node's device; empty when the device has gone."""
    try:
        return Path(f"/sys/class/input/{os.path.basename(path)}/device/{name}").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def sysfs_capabilities(path: str) -> Capabilities:
    """Return a device's capabilities from sysfs, without opening the device. They lack the ranges of axes. Empty when it has gone."""
    axes = _bitmap(path, "capabilities/abs")
    return Capabilities(
        keys=_bitmap(path, "capabilities/key"),
        rel_axes=_bitmap(path, "capabilities/rel"),
        abs_axes=dict.fromkeys(axes, AbsAxis(0, 0)),
        is_touchpad=INPUT_PROP_POINTER in _bitmap(path, "properties"),
    )


def _bitmap(path: str, name: str) -> frozenset[int]:
    """Return the numbers of the bits set in an attribute, which has the kernel's longs in hexadecimal, the highest first
    (input_print_bitmap in drivers/input/input.c).
    """
    words = _attribute(path, name).split()[::-1]
    return frozenset(
        place * 8 * LONG + bit
        for place, word in enumerate(words)
        for bit in range(8 * LONG)
        if int(word, 16) >> bit & 1
    )


class SystemNode:
    """An open device node of this machine."""

    def __init__(self, path: str) -> None:
        import evdev  # optional: needed only where guests use evdev devices

        self._device: Any = evdev.InputDevice(path)
        self.fd: int = self._device.fd
        self.name: str = self._device.name
        codes: dict[int, Any] = self._device.capabilities()
        self.capabilities = Capabilities(
            keys=frozenset(codes.get(EV_KEY, ())),
            rel_axes=frozenset(codes.get(EV_REL, ())),
            abs_axes={code: AbsAxis(info.min, info.max, info.resolution) for code, info in codes.get(EV_ABS, ())},
            leds=frozenset(codes.get(EV_LED, ())),
            is_touchpad=INPUT_PROP_POINTER in self._device.input_props(),
        )
        self.repeats = EV_REP in codes

    def read(self) -> Sequence[InputEvent]:
        # InputDevice.read() would make an object of each event, and needs a system call for each 64 of them.
        return read_events(self.fd)

    def snapshot(self) -> Snapshot:
        axes = {code: self._device.absinfo(code).value for code in self.capabilities.abs_axes}
        slots = self.capabilities.slots
        columns = [self._slot_values(code, slots) for code in SLOT_FIELDS] if slots else []
        return Snapshot(
            keys=frozenset(self._device.active_keys()),
            axes=axes,
            slots=[Slot(*fields) for fields in zip(*columns, strict=True)],
        )

    def _slot_values(self, code: int, slots: int) -> tuple[int, ...]:
        """Return an axis' value in each slot (EVIOCGMTSLOTS, struct input_mt_request_layout); 0 for an axis that the device lacks."""
        if code not in self.capabilities.abs_axes:
            return (0,) * slots
        layout = Struct(f"=I{slots}i")
        request = 2 << 30 | layout.size << 16 | ord("E") << 8 | 0x0A  # _IOC(_IOC_READ, 'E', 0x0a, size)
        answer = bytearray(layout.pack(code, *(0,) * slots))
        fcntl.ioctl(self.fd, request, answer)
        values: tuple[int, ...] = layout.unpack(answer)[1:]
        return values

    def grab(self) -> None:
        self._device.grab()

    def ungrab(self) -> None:
        self._device.ungrab()

    def set_lamps(self, lamps: dict[int, bool]) -> None:
        frame = [_EVENT.pack(EV_LED, lamp, is_on) for lamp, is_on in lamps.items()]
        os.write(self.fd, b"".join((*frame, _EVENT.pack(EV_SYN, SYN_REPORT, 0))))

    def close(self) -> None:
        # InputDevice.close() would create an asyncio loop to remove the file from it.
        os.close(self.fd)
        self._device.fd = -1
