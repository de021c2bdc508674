"""Simulated evdev devices. All open nodes of a device get the events that a test emits.

As in the kernel (drivers/input/input.c, evdev.c), only changes are reported, a reader that is too slow loses its events and reads
SYN_DROPPED, and a device that has been unplugged cannot be read.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from displbe.input.bindings import Role
from displbe.input.evdev.capabilities import Capabilities, Slot, Snapshot
from displbe.input.evdev.nodes import READ_EVENTS
from displbe.input.event_codes import ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_KEY, EV_SYN, SYN_DROPPED, SYN_REPORT

__all__ = ["BUFFER", "SimDevice", "SimNodes"]

BUFFER: Final = 64
"""The number of events that the kernel buffers for an open keyboard or mouse. For a touch screen it may be much larger."""


class SimDevice:
    """A device."""

    def __init__(self, name: str, capabilities: Capabilities, *, repeats: bool = True, buffer: int = BUFFER) -> None:
        self.name = name
        self.buffer = buffer
        self.capabilities = capabilities
        self.repeats = repeats
        self.keys: set[int] = set()
        self.lamps: dict[int, bool] = {}
        """Lamps, by code, and whether they are on."""
        self.axes: dict[int, int] = dict.fromkeys(capabilities.abs_axes, 0)
        self.slots: list[dict[int, int]] = [{ABS_MT_TRACKING_ID: -1} for _ in range(capabilities.slots)]
        self.readers: list[SimNode] = []

    def emit(self, *events: tuple[int, int, int]) -> None:
        """Report the events of one frame, and SYN_REPORT. Events that change nothing are left out."""
        frame = [event for event in events if self._changes(*event)]
        if frame:
            grabbed = [reader for reader in self.readers if reader.grabbed]
            for reader in grabbed or self.readers:
                reader.push([*frame, (EV_SYN, SYN_REPORT, 0)])

    def _changes(self, kind: int, code: int, value: int) -> bool:
        if kind == EV_KEY and value != 2:
            changed = (code in self.keys) != bool(value)
            (self.keys.add if value else self.keys.discard)(code)
            return changed
        if kind == EV_ABS:
            if code >= ABS_MT_SLOT and self.slots:
                return self._changes_slot(code, value)
            if code < ABS_MT_SLOT:
                changed = self.axes.get(code) != value
                self.axes[code] = value
                return changed
        return True

    def _changes_slot(self, code: int, value: int) -> bool:
        if code == ABS_MT_SLOT:
            changed = self.axes.get(code) != value
            self.axes[code] = value
            return changed
        slot = self.slots[self.axes[ABS_MT_SLOT]]
        changed = slot.get(code, 0) != value
        slot[code] = value
        return changed


class SimNode:
    """An open node of a device (input.evdev.nodes.DeviceNode)."""

    def __init__(self, device: SimDevice) -> None:
        self.name = device.name
        self.capabilities = device.capabilities
        self.repeats = device.repeats
        self.grabbed = False
        self._buffer = device.buffer
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._device: SimDevice | None = device
        self._events: deque[tuple[int, int, int]] = deque()
        device.readers.append(self)

    def push(self, events: list[tuple[int, int, int]]) -> None:
        """Buffer a frame (evdev_pass_values)."""
        for event in events:
            self._events.append(event)
            if len(self._events) >= self._buffer:
                self._events = deque([(EV_SYN, SYN_DROPPED, 0), event])
        os.eventfd_write(self.fd, 1)

    def unplug(self) -> None:
        """Make reads fail: the device has gone."""
        self._device = None
        os.eventfd_write(self.fd, 1)

    @property
    def has_lost(self) -> bool:
        """Whether the reader will read SYN_DROPPED."""
        return (EV_SYN, SYN_DROPPED, 0) in self._events

    def read(self) -> Sequence[tuple[int, int, int]]:
        """DeviceNode.read"""
        self._need()
        if not self._events:
            with suppress(BlockingIOError):
                os.eventfd_read(self.fd)
            raise BlockingIOError(errno.EAGAIN, "nothing to read")
        found = [self._events.popleft() for _ in range(min(READ_EVENTS, len(self._events)))]
        if not self._events:
            os.eventfd_read(self.fd)
        return found

    def snapshot(self) -> Snapshot:
        """Return the device's state, as DeviceNode.snapshot does. EVIOCGKEY discards buffered key events."""
        device = self._need()
        self._events = deque(event for event in self._events if event[0] != EV_KEY)
        names = {ABS_MT_TRACKING_ID: "tracking", 53: "x", 54: "y", 48: "major", 49: "minor", 52: "orientation"}
        slots = [Slot(**{names[code]: value for code, value in slot.items()}) for slot in device.slots]
        return Snapshot(keys=frozenset(device.keys), axes=dict(device.axes), slots=slots)

    def grab(self) -> None:
        """DeviceNode.grab"""
        if any(reader.grabbed for reader in self._need().readers):
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.grabbed = True

    def ungrab(self) -> None:
        """DeviceNode.ungrab"""
        self._need()
        self.grabbed = False

    def set_lamps(self, lamps: dict[int, bool]) -> None:
        """DeviceNode.set_lamps. The kernel ignores a program that has not grabbed a device that another has."""
        device = self._need()
        if self.grabbed or not any(reader.grabbed for reader in device.readers):
            device.lamps |= lamps

    def close(self) -> None:
        """DeviceNode.close"""
        if self._device is not None:
            self._device.readers.remove(self)
        os.close(self.fd)

    def _need(self) -> SimDevice:
        if self._device is None:
            raise OSError(errno.ENODEV, "No such device")
        return self._device


class SimNodes:
    """The devices that are plugged in (input.evdev.nodes.DeviceNodes)."""

    def __init__(self) -> None:
        self.devices: dict[str, SimDevice] = {}
        self.links: dict[str, str] = {}
        """Symbolic links to nodes, as udev makes them."""
        self.opened = 0

    def plug(self, path: str, device: SimDevice) -> SimDevice:
        """Plug a device in."""
        self.devices[path] = device
        return device

    def unplug(self, path: str) -> None:
        """Unplug a device, which releases its keys."""
        device = self.devices.pop(path)
        for reader in device.readers:
            reader.unplug()
        device.readers.clear()
        device.keys.clear()

    def paths(self) -> list[str]:
        """DeviceNodes.paths"""
        return sorted(self.devices)

    def resolve(self, path: str) -> list[str]:
        """DeviceNodes.resolve"""
        there = {name: name for name in self.devices} | self.links
        found = {target for name, target in there.items() if fnmatch.fnmatchcase(name, path)}
        return sorted(found & self.devices.keys())

    def name(self, path: str) -> str:
        """DeviceNodes.name"""
        return self.devices[path].name if path in self.devices else ""

    def is_absolute(self, path: str) -> bool:
        """DeviceNodes.is_absolute"""
        return path in self.devices and bool(self.devices[path].capabilities.is_absolute)

    def fitness(self, path: str, role: Role) -> int:
        """DeviceNodes.fitness"""
        return self.devices[path].capabilities.fitness(role) if path in self.devices else 0

    def open(self, path: str) -> SimNode:
        """DeviceNodes.open"""
        if path not in self.devices:
            raise OSError(errno.ENOENT, "No such file or directory")
        self.opened += 1
        return SimNode(self.devices[path])
