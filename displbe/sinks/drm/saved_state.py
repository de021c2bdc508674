"""The state in which a card was found, to be restored at the end (`on-exit = "restore"`)."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Final

from .atomic import MODESET, NEUTRAL, OFF, TEST, Atomic, Changes
from .device import DrmDevice
from .errors import CardGone, DrmError, NotMaster

__all__ = ["SavedState"]

_SAVED: Final = {
    "connector": ("CRTC_ID",),
    "crtc": ("ACTIVE", "MODE_ID", *NEUTRAL["crtc"]),
    "plane": (
        *("FB_ID", "CRTC_ID", "SRC_X", "SRC_Y", "SRC_W", "SRC_H", "CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H"),
        *NEUTRAL["plane"],
    ),
}
_BLOBS: Final = ("MODE_ID", *NEUTRAL["crtc"])
"""Properties whose values are blobs. The kernel frees a blob when the program that made it ends, so its bytes are saved."""


class SavedState:
    """The properties of a card's connectors, CRTCs and planes when this was made. Raises DrmError."""

    def __init__(self, device: DrmDevice) -> None:
        self._device = device
        self._state: Changes = {}
        self._blobs: dict[tuple[int, str], bytes] = {}
        for identity in device.connector_ids:
            self._save("connector", identity)
        for identity in device.crtcs:
            self._save("crtc", identity)
        for plane in device.planes:
            self._save("plane", plane.id)

    def _save(self, kind: str, identity: int) -> None:
        values = self._device.values(kind, identity)
        state = self._state[kind, identity] = {name: values[name] for name in _SAVED[kind] if name in values}
        if kind == "crtc":
            for name in _BLOBS:
                if state.get(name):
                    self._blobs[identity, name] = self._device.read_blob(state[name])

    def restore(self) -> None:
        """Restore the state of all CRTCs, except those whose framebuffers have gone with the program that made them.

        Raises DrmError.
        """
        for (identity, name), data in self._blobs.items():
            self._state["crtc", identity][name] = self._device.create_blob(data)
        try:
            self._commit(self._device.crtcs, MODESET)
        except (NotMaster, CardGone):
            raise
        except DrmError:
            restorable = [crtc for crtc in self._device.crtcs if self._is_restorable(crtc)]
            if not restorable:
                raise
            self._commit(restorable, MODESET)

    def _is_restorable(self, crtc: int) -> bool:
        with suppress(DrmError):
            self._commit([crtc], TEST)
            return True
        return False

    def _commit(self, crtcs: Collection[int], flags: int) -> None:
        """Restore these CRTCs and what belongs to them, and switch all others off. Raises DrmError.

        Connectors come and go with docks: those that are gone are left out, and those that have come are switched off.
        """
        there = self._device.connector_ids
        changes: Changes = {
            ("connector", identity): OFF["connector"]
            for identity in there
            if ("connector", identity) not in self._state
        }
        for (kind, identity), state in self._state.items():
            if kind == "connector" and identity not in there:
                continue
            crtc = identity if kind == "crtc" else state.get("CRTC_ID", 0)
            changes[kind, identity] = state if crtc in crtcs else OFF[kind]
        Atomic(self._device, changes).commit("restore what was shown before", flags)
