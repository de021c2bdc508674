"""Atomic commits: sets of properties that change together, or not at all."""

from __future__ import annotations

import ctypes
import errno
from array import array
from collections.abc import Mapping
from typing import Final

import msgspec

from displbe.sinks.turn import Turn

from . import uapi
from .device import DrmDevice, Mode, Plane
from .errors import DrmError, drm_error

__all__ = [
    "BUSY_RETRY",
    "FLIP",
    "LATE",
    "MODESET",
    "OFF",
    "TEST",
    "Atomic",
    "Changes",
    "Pipe",
    "PlaneConfig",
    "full_state",
    "off_state",
    "rotation",
]

FLIP: Final = uapi.DRM_MODE_ATOMIC_NONBLOCK | uapi.DRM_MODE_PAGE_FLIP_EVENT
MODESET: Final = uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
TEST: Final = uapi.DRM_MODE_ATOMIC_TEST_ONLY | uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
BUSY_RETRY: Final = 0.001
"""Seconds between two attempts of a commit that the kernel refuses with EBUSY."""
LATE: Final = 0.5
"""Seconds after which a flip ends although the card has not reported it. Linux's frontend waits 3.1 s for the event."""
_U64: Final = (1 << 64) - 1

Changes = dict[tuple[str, int], dict[str, int]]
"""(kind, id) of an object -> the new values of its properties."""


class Pipe(msgspec.Struct, frozen=True):
    """A connector (its id and name), and the CRTC and primary plane that carry a picture to it."""

    device: DrmDevice
    connector: int
    name: str
    crtc: int
    plane: Plane

    @property
    def objects(self) -> tuple[tuple[str, int], tuple[str, int], tuple[str, int]]:
        """Kind and id of the connector, the CRTC and the plane."""
        return ("connector", self.connector), ("crtc", self.crtc), ("plane", self.plane.id)


class PlaneConfig(msgspec.Struct, frozen=True):
    """A framebuffer on a plane: the part of it that is shown (`source`), and the part of the mode that shows it (`target`).

    Both parts are (x, y, width, height), in pixels; `target` is in those of the panel.
    """

    fb: int
    source: tuple[int, int, int, int]
    mode: Mode
    target: tuple[int, int, int, int]
    turn: Turn = Turn.NONE
    """How the plane turns the framebuffer."""


class Atomic:
    """A set of properties that are committed together. It is packed once; values can be changed between commits."""

    def __init__(
        self, device: DrmDevice, changes: Mapping[tuple[str, int], Mapping[str, int]], connector: str = ""
    ) -> None:
        self.device = device
        self._connector = connector
        objects = sorted(changes, key=lambda key: key[1])
        pairs = [(object_, name) for object_ in objects for name in changes[object_]]
        self._slots = {pair: index for index, pair in enumerate(pairs)}
        self._object_ids = array("I", [identity for _, identity in objects])
        self._counts = array("I", [len(changes[object_]) for object_ in objects])
        self._property_ids = array("I", [device.property(*object_, name) for object_, name in pairs])
        self._values = array("Q", [changes[object_][name] & _U64 for object_, name in pairs])
        self._argument = uapi.drm_mode_atomic(
            count_objs=len(objects),
            objs_ptr=self._object_ids.buffer_info()[0],
            count_props_ptr=self._counts.buffer_info()[0],
            props_ptr=self._property_ids.buffer_info()[0],
            prop_values_ptr=self._values.buffer_info()[0],
        )

    def slot(self, kind: str, identity: int, name: str) -> int:
        """Return the index of a value, for `set`."""
        return self._slots[(kind, identity), name]

    def set(self, slot: int, value: int) -> None:
        """Change a value."""
        self._values[slot] = value

    def addresses(self, slot: int) -> tuple[int, int]:
        """Return the address of the commit's drm_mode_atomic, and that of a value in it (`slot`). They are good as long as this object."""
        return ctypes.addressof(self._argument), self._values.buffer_info()[0] + self._values.itemsize * slot

    def commit(self, operation: str, flags: int, user_data: int = 0) -> None:
        """Commit. Raises DrmError. Waits for the hardware unless NONBLOCK or TEST_ONLY is among the flags."""
        argument = self._argument
        argument.flags = flags
        argument.user_data = user_data
        number = self.device.try_ioctl(uapi.DRM_IOCTL_MODE_ATOMIC, argument)
        if number:
            raise drm_error(operation, number, self._connector)


OFF: Final[dict[str, dict[str, int]]] = {
    "connector": {"CRTC_ID": 0},
    "crtc": {"ACTIVE": 0, "MODE_ID": 0},
    "plane": {"FB_ID": 0, "CRTC_ID": 0},
}
"""The values that switch an object off."""


def full_state(pipe: Pipe, config: PlaneConfig, blob: int) -> Changes:
    """Return all changes that make the pipe show `config` and nothing else; `blob` is the mode's property blob.

    Raises DrmError; EOPNOTSUPP: the plane cannot turn the framebuffer.
    """
    x, y, width, height = config.source
    left, top, across, down = config.target
    changes = _displaced(pipe)
    connector, crtc, plane = pipe.objects
    changes[connector] = {"CRTC_ID": pipe.crtc}
    changes[crtc] = {"ACTIVE": 1, "MODE_ID": blob}
    changes[plane] = {
        "FB_ID": config.fb,
        "CRTC_ID": pipe.crtc,
        "SRC_X": x << 16,
        "SRC_Y": y << 16,
        "SRC_W": width << 16,
        "SRC_H": height << 16,
        "CRTC_X": left,
        "CRTC_Y": top,
        "CRTC_W": across,
        "CRTC_H": down,
    }
    if config.turn is not Turn.NONE:
        changes[plane]["rotation"] = rotation(pipe, config.turn)
    return changes


def rotation(pipe: Pipe, turn: Turn) -> int:
    """Return the value of the plane's rotation property for a turn. Raises DrmError EOPNOTSUPP; the plane cannot turn then."""
    there = "rotation" in pipe.device.values("plane", pipe.plane.id)
    names = pipe.device.describe("plane", pipe.plane.id, "rotation").names if there else {}
    value = names.get(f"rotate-{turn.value}")
    if value is None:
        raise drm_error(f"turn the plane by {turn.value} degrees", errno.EOPNOTSUPP, pipe.name)
    return value


def off_state(pipe: Pipe, *, connector: bool = True) -> Changes:
    """Return the changes that switch the pipe off. The `connector` is left out if it is gone, with its dock."""
    there = connector and pipe.connector in pipe.device.connector_ids
    return {(kind, identity): OFF[kind] for kind, identity in pipe.objects if there or kind != "connector"}


def _displaced(pipe: Pipe) -> Changes:
    """Return the changes that switch off other connectors, CRTCs and planes that another program left in the pipe's way.

    A CRTC that the pipe's connector leaves is switched off too: the kernel refuses a CRTC without a connector.
    """
    device = pipe.device
    changes: Changes = {}
    driven = {}
    for connector in device.connector_ids:
        try:
            driven[connector] = device.values("connector", connector).get("CRTC_ID", 0)
        except DrmError as error:
            if error.number != errno.ENOENT:  # it has just gone with its dock
                raise
    before = driven.pop(pipe.connector, 0)
    free = {pipe.crtc}
    if before not in (0, pipe.crtc, *driven.values()):  # another connector may show the same CRTC
        changes["crtc", before] = OFF["crtc"]
        free.add(before)
    for connector, crtc in driven.items():
        if crtc == pipe.crtc:
            changes["connector", connector] = OFF["connector"]
    for plane in device.planes:
        if plane.id != pipe.plane.id and device.values("plane", plane.id).get("CRTC_ID") in free:
            changes["plane", plane.id] = OFF["plane"]
    return changes
