"""Atomic commits: sets of properties that change together, or not at all."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Final

import msgspec

from . import uapi
from .device import Card, Mode, Plane
from .errors import drm_error

__all__ = ["FLIP", "MODESET", "NEUTRAL", "TEST", "Atomic", "Changes", "Pipe", "Scene", "full", "off"]

FLIP: Final = uapi.DRM_MODE_ATOMIC_NONBLOCK | uapi.DRM_MODE_PAGE_FLIP_EVENT
MODESET: Final = uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
TEST: Final = uapi.DRM_MODE_ATOMIC_TEST_ONLY | uapi.DRM_MODE_ATOMIC_ALLOW_MODESET
_U64: Final = (1 << 64) - 1

Changes = dict[tuple[str, int], dict[str, int]]
"""(kind, id) of an object -> its properties' new values."""


class Pipe(msgspec.Struct, frozen=True):
    """What carries a picture to one connector."""

    card: Card
    connector: int
    name: str
    crtc: int
    plane: Plane


class Scene(msgspec.Struct, frozen=True):
    """What is on a screen: a part of a framebuffer, (x, y, width, height), in a part of a mode."""

    fb: int
    source: tuple[int, int, int, int]
    mode: Mode
    target: tuple[int, int, int, int]


class Atomic:
    """A set of properties to be committed together, packed once; values can be changed between commits."""

    def __init__(self, card: Card, changes: Mapping[tuple[str, int], Mapping[str, int]], connector: str = "") -> None:
        self._card = card
        self._connector = connector
        objects = sorted(changes, key=lambda key: key[1])
        pairs = [(object_, name) for object_ in objects for name in changes[object_]]
        self._slots = {pair: index for index, pair in enumerate(pairs)}
        self._objects = array("I", [identity for _, identity in objects])
        self._counts = array("I", [len(changes[object_]) for object_ in objects])
        self._names = array("I", [card.property(*object_, name) for object_, name in pairs])
        self._values = array("Q", [changes[object_][name] & _U64 for object_, name in pairs])
        self._ask = uapi.drm_mode_atomic(
            count_objs=len(objects),
            objs_ptr=self._objects.buffer_info()[0],
            count_props_ptr=self._counts.buffer_info()[0],
            props_ptr=self._names.buffer_info()[0],
            prop_values_ptr=self._values.buffer_info()[0],
        )

    def slot(self, kind: str, identity: int, name: str) -> int:
        """The place of a value, for `set`."""
        return self._slots[(kind, identity), name]

    def set(self, slot: int, value: int) -> None:
        """Change a value."""
        self._values[slot] = value

    def commit(self, operation: str, flags: int, user_data: int = 0) -> None:
        """Commit. Raises DrmError. Waits for the hardware unless NONBLOCK or TEST_ONLY is among the flags."""
        ask = self._ask
        ask.flags = flags
        ask.user_data = user_data
        number = self._card.try_ioctl(uapi.DRM_IOCTL_MODE_ATOMIC, ask)
        if number:
            raise drm_error(operation, number, self._connector)


NEUTRAL: Final[dict[str, dict[str, int]]] = {
    # drm_connector.c: after a link training that failed, whoever has the screen says GOOD (0) with its next mode set.
    "connector": {"link-status": 0},
    "crtc": {"DEGAMMA_LUT": 0, "CTM": 0, "GAMMA_LUT": 0},
    # drm_blend.c: DRM_MODE_ROTATE_0, DRM_BLEND_ALPHA_OPAQUE, DRM_MODE_BLEND_PREMULTI.
    "plane": {"rotation": 1, "alpha": 0xFFFF, "pixel blend mode": 0},
}
"""What else changes a picture, where the driver has it: whoever had the card before may have left its night light, say."""


def full(pipe: Pipe, scene: Scene, blob: int) -> Changes:
    """All that makes an output show a scene and nothing else, as it is."""
    x, y, width, height = scene.source
    left, top, across, down = scene.target
    changes = _displaced(pipe)
    connector, crtc, plane = ("connector", pipe.connector), ("crtc", pipe.crtc), ("plane", pipe.plane.id)
    for kind, identity in (connector, crtc, plane):
        there = pipe.card.values(kind, identity)
        changes[kind, identity] = {name: value for name, value in NEUTRAL[kind].items() if name in there}
    changes[connector] |= {"CRTC_ID": pipe.crtc}
    changes[crtc] |= {"ACTIVE": 1, "MODE_ID": blob}
    changes[plane] |= {
        "FB_ID": scene.fb,
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
    return changes


def off(pipe: Pipe) -> Changes:
    """Nothing on this output."""
    return {
        ("connector", pipe.connector): {"CRTC_ID": 0},
        ("crtc", pipe.crtc): {"ACTIVE": 0, "MODE_ID": 0},
        ("plane", pipe.plane.id): {"FB_ID": 0, "CRTC_ID": 0},
    }


def _displaced(pipe: Pipe) -> Changes:
    """What whoever had the card before left in our way: the kernel refuses a CRTC without a connector, for one."""
    card = pipe.card
    changes: Changes = {}
    driven = {connector: card.values("connector", connector).get("CRTC_ID", 0) for connector in card.connector_ids}
    before = driven.pop(pipe.connector, 0)
    free = {pipe.crtc}
    if before not in (0, pipe.crtc, *driven.values()):  # another connector may show the same CRTC
        changes["crtc", before] = {"ACTIVE": 0, "MODE_ID": 0}
        free.add(before)
    for connector, crtc in driven.items():
        if crtc == pipe.crtc:
            changes["connector", connector] = {"CRTC_ID": 0}
    for plane in card.planes:
        if plane.id != pipe.plane.id and card.values("plane", plane.id).get("CRTC_ID") in free:
            changes["plane", plane.id] = {"FB_ID": 0, "CRTC_ID": 0}
    return changes
