"""Neutral values of properties that change a picture: the program that had the card before may have left a colour filter, HDR, a rotation.

They are set with the first mode. A property that is neutral already is not touched, so a driver is asked for no more than necessary.

Left alone: what the machine's owner sets (a privacy screen, margins against overscan, which the kernel's command line gives), and what
cannot be seen in a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from .atomic import TEST, Atomic, Changes, Pipe
from .device import BLEND_MODE, OPAQUE_BLENDING, DrmDevice
from .errors import DrmError
from .properties import Property

__all__ = ["NEUTRAL", "Extra", "commit_with", "neutral_values"]


class AtLeast(msgspec.Struct, frozen=True):
    """Any value that is not below this number."""

    number: int


Neutral: TypeAlias = int | AtLeast | tuple[str, ...]
"""A number (the nearest one in the property's range), or the names of values; the first that the driver has is meant."""

NEUTRAL: Final[dict[str, dict[str, Neutral]]] = {
    "connector": {
        # drm_connector.c: after a failed link training, the next mode set has to set link-status to GOOD (0).
        "link-status": 0,
        "HDR_OUTPUT_METADATA": 0,
        "Colorspace": ("Default",),
        "underscan": ("off",),
        "underscan hborder": 0,
        "underscan vborder": 0,
        # Guests' colours have 8 bits. More is a maximum, of which the driver takes what the link can carry.
        "max bpc": AtLeast(8),
        "Broadcast RGB": ("Automatic",),
        "content type": ("No Data",),
    },
    "crtc": {
        "DEGAMMA_LUT": 0,
        "CTM": 0,
        "GAMMA_LUT": 0,
        "VRR_ENABLED": 0,
        "SCALING_FILTER": ("Default",),
        "SHARPNESS_STRENGTH": 0,
        "BACKGROUND_COLOR": 0xFFFF_0000_0000_0000,  # opaque black, in 16 bits each of alpha, red, green, blue
    },
    "plane": {
        "rotation": ("rotate-0",),
        "alpha": 0xFFFF,  # DRM_BLEND_ALPHA_OPAQUE
        BLEND_MODE: OPAQUE_BLENDING,
        "zpos": 0,
        # The defaults of YUV framebuffers, as sinks/convert.py takes them.
        "COLOR_ENCODING": ("ITU-R BT.601 YCbCr",),
        "COLOR_RANGE": ("YCbCr limited range",),
        "SCALING_FILTER": ("Default",),
    },
}


class Extra(msgspec.Struct, frozen=True):
    """A property's value that is wanted in a commit, if the card accepts it."""

    object: tuple[str, int]
    """Kind and id."""
    name: str
    value: int


def neutral_values(pipe: Pipe) -> list[Extra]:
    """Return the neutral values of the properties of a pipe's objects; only of those that are not neutral now. Raises DrmError."""
    device, found = pipe.device, []
    for kind, identity in pipe.objects:
        there = device.values(kind, identity)
        for name, neutral in NEUTRAL[kind].items():
            if name not in there:
                continue
            value = _value(device.describe(kind, identity, name), neutral, there[name])
            if value != there[name]:
                found.append(Extra((kind, identity), name, value))
    return found


def commit_with(
    device: DrmDevice, state: Changes, extras: Sequence[Extra], operation: str, flags: int, connector: str = ""
) -> list[tuple[Extra, DrmError]]:
    """Commit or test a state with those extras that the card accepts. Return the others, and why they were refused.

    Raises DrmError: the state is refused, whatever goes with it. An extra is tried alone only after a commit has failed.
    """

    def commit(extras: Sequence[Extra], flags: int) -> None:
        changes = {object_: dict(values) for object_, values in state.items()}
        for extra in extras:
            changes.setdefault(extra.object, {})[extra.name] = extra.value
        Atomic(device, changes, connector).commit(operation, flags)

    def refusal(extras: Sequence[Extra], flags: int) -> DrmError | None:
        try:
            commit(extras, flags)
        except DrmError as error:
            if not error.refuses_frame:  # it says nothing about the values
                raise
            return error
        return None

    first = refusal(extras, flags)
    if first is None:
        return []
    if not extras or refusal((), TEST):
        raise first
    refused = [(extra, error) for extra in extras if (error := refusal([extra], TEST))]
    accepted = [extra for extra in extras if extra not in [refused_one for refused_one, _ in refused]]
    error = refusal(accepted, flags) if accepted and refused else first
    if error is not None:  # each alone, but not together
        commit((), flags)
        refused += [(extra, error) for extra in accepted]
    return refused


def _value(known: Property, neutral: Neutral, now: int) -> int:
    """Return the neutral value of a property; its present value if it cannot be set or has no neutral value."""
    if not known.settable:
        return now
    match neutral:
        case AtLeast(number):
            wanted = max(now, number)
        case int():
            wanted = neutral
        case names:
            return next((known.names[name] for name in names if name in known.names), now)
    low, high = known.limits or (wanted, wanted)
    return min(max(wanted, low), high)
